"""Tensors that travel together."""

import torch

from dpo.lm.batch import collate_shared
from dpo.lm.sequences import TokenSequence
from dpo.lm.transfer import begin_reading, moved, packed, unpacked

MIXED = [
    torch.arange(5),
    torch.tensor([[1, -2, 3]], dtype=torch.int32),
    torch.tensor([True, False, True]),
    torch.linspace(0, 1, 7, dtype=torch.float64).view(7, 1),
    torch.empty(0, 3, dtype=torch.bfloat16),
    torch.arange(12).view(3, 4).t(),  # not contiguous
    torch.tensor(2.5),
]


def test_packed_tensors_come_out_as_they_were():
    for tensor, found in zip(MIXED, unpacked(packed(MIXED), MIXED), strict=True):
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_they_lie_in_one_stretch():
    buffer = packed(MIXED)
    assert len({part.untyped_storage().data_ptr() for part in unpacked(buffer, MIXED)}) == 1
    assert all(part.data_ptr() % part.element_size() == 0 for part in unpacked(buffer, MIXED))


def test_nothing_is_copied_to_where_it_is():
    assert all(a is b for a, b in zip(moved(MIXED, torch.device("cpu")), MIXED, strict=True))
    assert moved([], torch.device("meta")) == []


def test_a_batch_travels_whole():
    prompt = [1, 2, 3]
    sequences = [TokenSequence(prompt, c, [True] * len(c)) for c in ([4, 5], [6], [7, 8, 9])]
    batch = collate_shared(sequences, 0)
    there = batch.to(torch.device("meta"))
    assert there.segments is not None and batch.segments is not None
    for here, far in ((batch, there), (batch.segments, there.segments)):
        tensors = {name: value for name, value in vars(here).items() if isinstance(value, torch.Tensor)}
        assert len(tensors) in (7, 3)
        for name, tensor in tensors.items():
            assert getattr(far, name).device.type == "meta"
            assert (getattr(far, name).shape, getattr(far, name).dtype) == (tensor.shape, tensor.dtype)


def test_reading_gives_the_values():
    assert begin_reading(MIXED[0])().tolist() == [0, 1, 2, 3, 4]
