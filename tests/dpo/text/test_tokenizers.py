"""Loading a tokenizer: the byte tokenizer, folders of every shape, end tokens and templates."""

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer

from dpo.text.tokenizers import CHATML, TokenizerError, byte_tokenizer, load_tokenizer

BYTES = byte_tokenizer()
TEXTS = ["", "Hello, world.", "  two  blanks ,  and a dot .\n\n", "naïve Ω 中文 🦊👩‍👩‍👧", "a\0b\x7f\x1b", "�"]


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False)


@settings(max_examples=60, deadline=None)
@given(st.text().filter(lambda text: "<eos>" not in text and "<pad>" not in text))
@example("🦊\0\r\n")
def test_any_text_comes_back_from_its_bytes(text):
    ids = BYTES(text)["input_ids"]
    assert len(ids) == len(text.encode())  # one token a byte
    assert all(0 <= token < 256 for token in ids)
    assert BYTES.decode(ids) == text


def test_the_byte_tokenizers_ids():
    assert (len(BYTES), BYTES.eos_token_id, BYTES.pad_token_id) == (258, 256, 257)
    assert len(set(BYTES(bytes(range(128)).decode())["input_ids"])) == 128
    assert BYTES("a<eos>")["input_ids"][-1] == 256


@pytest.mark.parametrize("text", TEXTS)
def test_the_byte_tokenizer_is_saved_and_loaded(tmp_path, text):
    BYTES.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert loaded(text)["input_ids"] == BYTES(text)["input_ids"]
        assert round_trip(loaded, text) == text
        assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (256, 257, 258)


def test_a_template_is_saved_with_the_tokenizer(tmp_path):
    load_tokenizer("bytes", eos_token="<|im_end|>", chat_template="chatml").save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.chat_template == CHATML
    assert loaded.eos_token == "<|im_end|>"


def bare_backend(*special):
    """A byte-level BPE of 256 bytes, one merge and these extra tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "th", *special])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def write_two_files(folder, *special):
    backend = json.loads(bare_backend(*special).to_str())
    (folder / "vocab.json").write_text(json.dumps(backend["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n", encoding="utf-8")


def test_the_two_file_form_of_gpt2(tmp_path):
    write_two_files(tmp_path, "<|endoftext|>")
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(tokenizer("the")["input_ids"]) == 2  # th, e
    assert round_trip(tokenizer, "the  thing, thus .") == "the  thing, thus ."
    assert tokenizer.eos_token_id == 257
    assert tokenizer("the<|endoftext|>")["input_ids"][-1] == 257


def test_a_bare_tokenizer_json_needs_an_end_token(tmp_path):
    bare_backend().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="no end-of-sequence token") as error:
        load_tokenizer(str(tmp_path))
    assert "[tokenizer] eos_token" in str(error.value)  # what to do
    tokenizer = load_tokenizer(str(tmp_path), eos_token="<end>")
    assert tokenizer.eos_token_id == 257  # added behind the vocabulary
    assert tokenizer("the<end>")["input_ids"][-1] == 257


def test_the_two_file_form_without_an_end_token(tmp_path):
    write_two_files(tmp_path)
    with pytest.raises(TokenizerError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_an_end_token_of_the_vocabulary_is_taken_from_there(tmp_path):
    write_two_files(tmp_path, "<|endoftext|>", "<|im_end|>")
    tokenizer = load_tokenizer(str(tmp_path), eos_token="<|im_end|>")
    assert (tokenizer.eos_token_id, len(tokenizer)) == (258, 259)


@pytest.mark.parametrize("path", ["no/such/folder", "empty"])
def test_nothing_to_load_says_where(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match=f"no tokenizer could be loaded from '.*{path}'"):
        load_tokenizer(str(tmp_path / path))


def test_templates_may_be_names_texts_or_files(tmp_path):
    (tmp_path / "template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert load_tokenizer("bytes", chat_template="chatml").chat_template == CHATML
    assert load_tokenizer("bytes", chat_template="{{ bos }}").chat_template == "{{ bos }}"
    from_file = load_tokenizer("bytes", chat_template=str(tmp_path / "template.jinja"))
    assert from_file.chat_template == "{{ messages[0]['content'] }}"
    with pytest.raises(TokenizerError, match="neither"):
        load_tokenizer("bytes", chat_template=str(tmp_path / "missing.jinja"))


# Tokenizers that are refused with one sentence


def test_a_python_tokenizer_is_refused(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"is ByT5Tokenizer, .* needs a tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_custom_code_is_neither_run_nor_asked_for(tmp_path, capfd):
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "own.py").write_text("print('code was run')\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match="Code that comes with a tokenizer is never run"):
        load_tokenizer(str(tmp_path))
    said = "".join(capfd.readouterr())
    assert "code was run" not in said and "[y/N]" not in said


def test_a_lone_sentencepiece_file_is_named_as_such(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02")
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"has a tokenizer\.model alone") as error:
        load_tokenizer(str(tmp_path))
    assert "tokenizer.json" in str(error.value)


def test_dropout_is_taken_out_on_loading(tmp_path):
    backend = bare_backend("<end>")
    backend.model.dropout = 0.5
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path), eos_token="<end>")
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["dropout"] is None


def test_code_of_a_tokenizers_folder_is_not_run(tmp_path, monkeypatch):
    """Not even if whoever sits at the terminal would say yes."""
    mark = tmp_path / "was-run"
    (tmp_path / "tok.py").write_text(
        f"open({str(mark)!r}, 'a').write('x')\nfrom transformers import PreTrainedTokenizerFast\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    settings = {"tokenizer_class": "T", "eos_token": "<eos>", "auto_map": {"AutoTokenizer": [None, "tok.T"]}}
    byte_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "vocab_size": 300}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))
    with pytest.raises(TokenizerError, match="Code that comes with a tokenizer is never run"):
        load_tokenizer(str(tmp_path))
    assert not mark.exists()
