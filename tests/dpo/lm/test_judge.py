"""Model folders that are trained as they are, and those that are refused, each with its reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from dpo.errors import InputError
from dpo.lm.judge import judge
from dpo.lm.models import load_model
from dpo.lm.small import try_small
from dpo.lm.weights import canonical_tensors, write_weights
from tests.dpo.tiny import tiny_model

SIZES = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip

PROPHET = {
    "num_encoder_layers": 1, "num_decoder_layers": 2, "num_decoder_attention_heads": 2, "decoder_ffn_dim": 24,
    "num_hidden_layers": None,
}  # fmt: skip


def saved(folder: Path, kind: str = "llama", loader=AutoModelForCausalLM, **fields) -> Path:
    given = {name: value for name, value in {**SIZES, **fields}.items() if value is not None}
    loader.from_config(AutoConfig.for_model(kind, **given)).save_pretrained(folder)
    return folder


def rewritten(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def configured(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def sharded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = [dict(sorted(tensors.items())[i::2]) for i in range(2)]
    for number, half in enumerate(halves):
        save_file(half, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
    where = {name: f"part-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def drop(word: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if word not in name}


def beside(name: str, *shape: int):
    return lambda tensors: tensors | {name: torch.ones(shape)}


# Each makes something of a whole Llama, and is refused with these words.
SPOILED = {
    "no head": (lambda f: rewritten(f, drop("lm_head")), "are missing and would be made up at random (1): lm_head"),
    "no last norm": (lambda f: rewritten(f, drop("model.norm")), "are missing .* model.norm.weight"),
    "a layer too few": (lambda f: rewritten(f, drop("layers.2.")), "are missing .* model.layers.2."),
    "a layer too many": (lambda f: configured(f, num_hidden_layers=2), "would be lost .* model.layers.2."),
    "a value head": (lambda f: rewritten(f, beside("v_head.summary.weight", 1, 16)), "would be lost (1): v_head"),
    "a classifier": (lambda f: rewritten(f, beside("score.weight", 2, 16)), "would be lost (1): score.weight"),
    "a LoRA": (lambda f: rewritten(f, beside("model.layers.0.mlp.up_proj.lora_B.weight", 24, 2)), "would be lost (1)"),
    "another width": (lambda f: configured(f, intermediate_size=32), "16 x 24 in the file, 16 x 32 in the"),
    "another vocabulary": (lambda f: configured(f, vocab_size=100), "another shape .*96 x 16 in the file, 100 x 16"),
    "a torn file": (lambda f: os.truncate(f / "model.safetensors", 9000), "it is damaged. Copy it again"),
    "a long file": (lambda f: os.truncate(f / "model.safetensors", 900_000), "it is damaged. Copy it again"),
    "an empty file": (lambda f: os.truncate(f / "model.safetensors", 0), "not a safetensors file, or is damaged"),
    "a pointer of LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "Run `git lfs pull`",
    ),
    "pickled weights": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle format"),
    "pickled shards": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model-00001-of-00001.bin"), "pickle format",
    ),
    "GGUF": (lambda f: (f / "model.safetensors").rename(f / "model-q4.gguf"), r"GGUF weights \(model-q4.gguf\)"),
    "another name": (lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors"), "under another name"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no safetensors weights"),
    "a shard too few": (lambda f: (sharded(f), (f / "part-1.safetensors").unlink()), "lacks 1 of the 2 files"),
    "a damaged index": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text("[]")), "not an index of safetensors",
    ),
    "an adapter beside it": (lambda f: (f / "adapter_config.json").write_text("{}"), "a model and an adapter beside"),
    "quantized": (lambda f: configured(f, quantization_config={"quant_method": "gptq"}), r"gptq\), .* dequantize"),
    "an unknown type": (lambda f: configured(f, model_type="llama77"), "cannot read .*llama77"),
    "code of its own": (
        lambda f: configured(f, model_type="mine", auto_map={"AutoConfig": "mine.Mine"}), "is never run",
    ),
    "no type": (lambda f: configured(f, model_type=None), "cannot read"),
    "a field of another kind": (lambda f: configured(f, hidden_size="wide"), "cannot read"),
    "a list": (lambda f: (f / "config.json").write_text("[1, 2]"), "is no JSON object"),
    "no JSON": (lambda f: (f / "config.json").write_text("{'a': 1}"), "is not valid JSON"),
    "a byte-order mark": (lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf{}"), "is not valid JSON"),
    "no UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff\xfe"}'), "is not UTF-8"),
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "a folder in its place": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "config.json cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused_by_name(tmp_path, case):
    spoil, said = SPOILED[case]
    folder = saved(tmp_path / "model")
    judge(folder)
    spoil(folder)
    said = said.replace("(1)", r"\(1\)")
    with pytest.raises(InputError, match=said) as error:
        judge(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "loader", "fields", "said"),
    [
        ("t5", AutoModelForCausalLM, None, "encoder-decoder"),
        ("bart", AutoModelForSeq2SeqLM, {}, "encoder-decoder"),
        ("bert", AutoModelForCausalLM, {}, "lets a token see those behind it"),
        ("roberta", AutoModelForCausalLM, {}, "lets a token see those behind it"),
        ("electra", AutoModelForCausalLM, {}, "lets a token see those behind it"),
        ("prophetnet", AutoModelForCausalLM, PROPHET, "lets a token see those behind it"),  # by their being there alone
        ("distilbert", AutoModel, {}, "is no causal language model"),
        ("llama", AutoModel, {}, "lm_head.weight"),  # saved without its head
        ("llama", AutoModelForSequenceClassification, {}, "lm_head.weight"),
    ],
)
def test_other_kinds_of_models(tmp_path, kind, loader, fields, said):
    if fields is None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "is_encoder_decoder": True}))
    else:
        saved(tmp_path, kind, loader, **fields)
    with pytest.raises(InputError, match=said):
        judge(tmp_path)
        try_small(tmp_path)


WHOLE = {
    "sharded": sharded,
    "in halves": lambda f: rewritten(f, lambda tensors: {name: t.half() for name, t in tensors.items()}),
    "a second copy beside it": lambda f: shutil.copy(f / "model.safetensors", f / "consolidated.safetensors"),
    "the file of a trainer": lambda f: torch.save({}, f / "training_args.bin"),
    "a config of generation that is refused": lambda f: (f / "generation_config.json").write_text('{"top_p": 3}'),
    "code that a known type does not need": lambda f: configured(f, auto_map={"AutoConfig": "mine.Mine"}),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_folder_passes(tmp_path, case):
    folder = saved(tmp_path / "model")
    WHOLE[case](folder)
    judge(folder)
    load_model(folder, torch.float32)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
        ("gpt_neox", {}),  # whose head has another name on disk
        ("mixtral", {"num_local_experts": 2}),  # whose experts are joined in memory
        ("qwen3_moe", {"num_experts": 2, "moe_intermediate_size": 8, "num_experts_per_tok": 1}),
        ("mamba2", {"num_heads": 4, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8}),
        ("bert", {"is_decoder": True}),
        ("bloom", {}),
    ],
)
def test_no_false_alarm(tmp_path, kind, fields):
    judge(saved(tmp_path, kind, **fields))
    try_small(tmp_path)


def test_x_transformers(tmp_path):
    network = tiny_model("x-rotary")
    network.write_config(tmp_path)
    write_weights(tmp_path, canonical_tensors(network.network))
    judge(tmp_path)
    rewritten(tmp_path, lambda all_: dict(list(all_.items())[1:]))
    with pytest.raises(InputError, match="are missing and would be made up at random"):
        judge(tmp_path)


def test_the_loader_makes_nothing_up(tmp_path):
    """A folder that changed after it was judged."""
    folder = saved(tmp_path / "model")
    for spoil, said in (SPOILED["no head"], SPOILED["a value head"]):
        copy = tmp_path / said[:9]
        shutil.copytree(folder, copy)
        spoil(copy)
        with pytest.raises(InputError, match=r"lm_head\.weight|v_head"):
            load_model(copy, torch.float32)


BIG = """
import sys
from pathlib import Path
import dpo.lm.judge
dpo.lm.judge.judge(Path(sys.argv[2]))  # so that the code is loaded
def read():
    return int(Path("/proc/self/io").read_text().split()[1])
before = read()
dpo.lm.judge.judge(Path(sys.argv[1]))
print(read() - before)
"""


def test_no_weights_are_read(tmp_path):
    """A model of 70 billion parameters: headers, and files that have their size but no content."""
    config = AutoConfig.for_model(
        "llama", vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    names, where = list(shapes), {}
    for number in range(30):
        header, end = {}, 0
        for name in names[number::30]:
            size = 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            where[name] = f"model-{number}.safetensors"
        text = json.dumps(header).encode()
        path = tmp_path / f"model-{number}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(path, 8 + len(text) + end)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 140e9
    small = saved(tmp_path / "small")
    command = [sys.executable, "-c", BIG, str(tmp_path), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e6
