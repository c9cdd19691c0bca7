"""The digest of weights, read from the files alone."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from dpo.lm.weight_files import DTYPES, WeightsError, weights_digest

TYPES = sorted({getattr(torch, name) for name in DTYPES.values()}, key=str)


def of_tensors(tensors):
    """The digest by torch: over the lines `name type shape sha256`, sorted."""
    lines = []
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_files_and_tensors_have_one_digest(tmp_path, dtype):
    tensors = {
        "matrix": torch.arange(6).view(2, 3).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "nothing": torch.zeros(0, 4).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert weights_digest(tmp_path) == of_tensors(tensors)


def damaged(content):
    header = int.from_bytes(content[:8], "little")
    return {
        "no length": content[:5],
        "half a header": content[: 8 + header // 2],
        "half a tensor": content[:-3],
        "no JSON": content[:8] + b"x" * header + content[8 + header :],
        "a huge header": (2**62).to_bytes(8, "little") + content[8:],
        "nothing": b"",
    }


@pytest.mark.parametrize("how", damaged(b"\x01" + bytes(20)))
def test_a_damaged_file_is_named(tmp_path, how):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(6.0)}, path)
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(WeightsError, match=r"model\.safetensors .*Copy it again"):
        weights_digest(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    index = {"weight_map": {"weight": "model-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((WeightsError, FileNotFoundError), match="model-00001"):
        weights_digest(tmp_path)
