"""Which tokenizer a configuration means."""

import pytest

from dpo.text.tokenizers import TokenizerError, load_tokenizer
from pipeline.config import Config
from pipeline.data import tokenizer
from pipeline.data.tokenizer import open_tokenizer, pad_id
from pipeline.errors import ConfigError, InputError
from tests.pipeline.files import config_file


def tokenizer_of(folder, **sections):
    return open_tokenizer(Config.load(config_file(folder, **sections)))


def test_a_policy_of_x_transformers_reads_bytes_unless_told_otherwise(tmp_path):
    one = tokenizer_of(tmp_path)
    assert len(one) == 258
    assert pad_id(one) == one.pad_token_id
    other = tokenizer_of(tmp_path, tokenizer={"path": "bytes", "eos_token": "<stop>", "chat_template": "chatml"})
    assert (other.eos_token, "<|im_start|>" in other.chat_template) == ("<stop>", True)


def test_a_random_policy_needs_a_tokenizer_to_be_named(tmp_path):
    policy = {"kind": "huggingface", "config": {"model_type": "llama"}}
    with pytest.raises(ConfigError, match=r"tokenizer\.path is missing"):
        tokenizer_of(tmp_path, policy=policy)


def test_a_tokenizer_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer.path = '.*none': there is no such folder"):
        tokenizer_of(tmp_path, tokenizer={"path": "./none"})


def test_a_tokenizer_is_read_once_and_again_where_its_files_or_settings_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chatty = load_tokenizer("bytes", None, "chatml")
    chatty.save_pretrained(tmp_path / "tokenizer")
    settings = {"path": str(tmp_path / "tokenizer")}
    first = tokenizer_of(tmp_path, tokenizer=settings)
    with monkeypatch.context() as without:
        without.setattr(tokenizer, "Process", None)  # reading again would fail
        again = tokenizer_of(tmp_path, tokenizer=settings)
        assert again.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
        with pytest.raises(TypeError):
            tokenizer_of(tmp_path, tokenizer={**settings, "eos_token": "<stop>"})
        (tmp_path / "tokenizer" / "chat_template.jinja").write_text("another")
        with pytest.raises(TypeError):
            tokenizer_of(tmp_path, tokenizer=settings)
    assert tokenizer_of(tmp_path, tokenizer=settings).chat_template == "another"


def test_a_tokenizer_that_cannot_be_loaded_keeps_its_error(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(TokenizerError, match="no tokenizer could be loaded from"):
        tokenizer_of(tmp_path, tokenizer={"path": str(tmp_path / "tokenizer")})


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(tokenizer_of(tmp_path)) == 258


def test_a_policy_whose_tokenizer_is_not_there_is_named_by_its_own_key(tmp_path):
    with pytest.raises(InputError, match=r"^policy\.path = '.*none': there is no such folder"):
        tokenizer_of(tmp_path, policy={"kind": "huggingface", "path": "./none"})
