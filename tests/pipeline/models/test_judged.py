"""Trained weights that are not like their start are refused by name, before anything is made of them."""

import re

import pytest
from safetensors.torch import load_file, save_file

from pipeline.errors import RunError
from pipeline.models.start import Weights, complete, make_random
from tests.pipeline.worker.small_run import LLAMA, model_folder


def rewritten(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.slow
def test_the_first_differences_are_named(tmp_path):
    start, written = (model_folder(tmp_path / name, LLAMA) for name in ("start", "written"))
    complete(written, Weights(start, "a digest"), "float32")
    assert (written / "config.json").exists()
    (written / "config.json").unlink()
    rewritten(written, lambda tensors: {name: t for name, t in tensors.items() if "layers.1.mlp" not in name})
    said = "down_proj.weight was not written; model.layers.1.mlp.gate_proj.weight was not written; model.layers.1."
    with pytest.raises(RunError, match=re.escape(said)):
        complete(written, Weights(start, "a digest"), "float32")
    rewritten(written, lambda tensors: {name: t for name, t in tensors.items() if "layers.1." not in name})
    with pytest.raises(RunError, match=r"; and 6 more\. Training is done, and its last checkpoint is kept"):
        complete(written, Weights(start, "a digest"), "float32")
    assert not (written / "config.json").exists()


def test_a_random_model_is_as_the_library_would_write_it(tmp_path):
    described = {**LLAMA, "model_type": "mixtral", "num_local_experts": 2}
    make_random(tmp_path / "model", {"config": described, "seed": 0})
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert "model.layers.0.block_sparse_moe.experts.1.w2.weight" in names
