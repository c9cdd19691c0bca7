import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from dpo.lm.attention import AttentionError, hugging_face_attention, shared_attention, tails_apart
from dpo.lm.batch import Group
from dpo.lm.hf import SHARED
from dpo.lm.segments import Segments, lower_right, tail_masks
from tests.dpo.tiny import tiny_model


def placed(shapes):
    """(shared, tails) of each group -> groups that fill one row."""
    groups, start = [], 0
    for shared, tails in shapes:
        groups.append(Group(start, shared, tuple(tails)))
        start += shared + sum(tails)
    return tuple(groups)


def random_groups(seed):
    rng = random.Random(seed)
    shapes = []
    for _ in range(rng.randint(1, 4)):
        tails = [rng.randint(1, 4) for _ in range(rng.randint(0, 4))]
        shapes.append((rng.randint(0 if tails else 1, 5), tails))
    return placed(shapes)


def total(groups):
    return sum(group.shared + sum(group.tails) for group in groups)


def parts(groups):
    """Of every position: its group, and its part of it: 0 is shared, 1, 2, ... are the tails."""
    told = []
    for number, group in enumerate(groups):
        told += [(number, 0)] * group.shared
        for tail, length in enumerate(group.tails, start=1):
            told += [(number, tail)] * length
    return told


def visible(groups):
    """[T, T]: whom each position sees, said in words."""
    of = parts(groups)
    mask = torch.zeros(len(of), len(of), dtype=torch.bool)
    for i, (group, part) in enumerate(of):
        for j, (other_group, other_part) in enumerate(of[: i + 1]):
            mask[i, j] = group == other_group and other_part in (0, part)
    return mask


def dense_attention(query, key, value, groups, scale=None):
    """Head by head: every weight of the whole row, then a mask."""
    heads, repeats = query.shape[1], query.shape[1] // key.shape[1]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = visible(groups)
    out = []
    for head in range(heads):
        weights = query[0, head] @ key[0, head // repeats].T * scale
        out.append(weights.masked_fill(~mask, -math.inf).softmax(-1) @ value[0, head // repeats])
    return torch.stack(out)[None]


def random_states(groups, heads, key_heads, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, n, total(groups), channels) for n in (heads, key_heads, key_heads)]
    states = [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [state.requires_grad_() for state in states]


@pytest.mark.parametrize("scale", [None, 0.9])
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(10))
def test_equals_dense_attention_with_a_mask(seed, heads, key_heads, scale):
    """Value and gradients."""
    groups = random_groups(seed)
    states = random_states(groups, heads, key_heads, seed=seed)
    ours = shared_attention(*states, groups, scale)
    dense = dense_attention(*states, groups, scale)
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    weights = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), states) for out in (ours, dense)]
    for our_gradient, dense_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(our_gradient, dense_gradient, rtol=1e-11, atol=1e-11)


def test_the_random_groups_are_of_all_kinds():
    groups = [group for seed in range(10) for group in random_groups(seed)]
    assert {min(len(group.tails), 3) for group in groups} == {0, 1, 2, 3}
    assert any(group.shared == 0 for group in groups)


def test_gradcheck():
    groups = placed([(2, [1, 2]), (0, [1, 1]), (1, [])])
    states = random_states(groups, heads=2, key_heads=1, channels=2)
    assert torch.autograd.gradcheck(lambda *s: shared_attention(*s, groups), states)


def test_by_hand():
    """Queries of 0 weigh all alike. Values 1, 2 | 4 | 8: means 1, 3/2, then 7/3 and 11/3; the other group 16."""
    groups = placed([(2, [1, 1]), (1, [])])
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64).view(1, 1, 5, 1)
    zeros = torch.zeros_like(value)
    out = shared_attention(zeros, zeros, value, groups).flatten().tolist()
    assert out == pytest.approx([1, 3 / 2, 7 / 3, 11 / 3, 16])


def test_lower_right_by_hand():
    """Two queries at the end of four keys."""
    mask = lower_right(2, 4, torch.device("cpu"))
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


class Asked(TorchFunctionMode):
    """Notes how attention is asked, and with how many heads of keys."""

    def __init__(self):
        super().__init__()
        self.options, self.key_heads = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.options.append(kwargs)
            self.key_heads.append(args[1].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "dtype", "grouped"),
    [
        ("cpu", torch.float32, True),
        ("cpu", torch.bfloat16, True),
        ("meta", torch.bfloat16, True),
        ("meta", torch.float32, False),
    ],
)
def test_a_gpu_in_float32_gets_its_heads_repeated(device, dtype, grouped):
    """A tensor of type meta stands for any device that is no CPU. The second call, of a tail, never groups."""
    states = [torch.empty(1, heads, 5, 8, device=device, dtype=dtype) for heads in (4, 2, 2)]
    with Asked() as asked:
        assert shared_attention(*states, GROUPS).shape == (1, 4, 5, 8)
    assert [options.get("enable_gqa", False) for options in asked.options] == [grouped, False]
    assert asked.key_heads == [2 if grouped else 4, 4]


def test_masks_that_were_made_before_are_taken():
    """One with nothing in it would show. They are in the order of the groups' further tails."""
    groups = placed([(2, [1, 2, 1]), (0, [1, 1]), (1, [])])
    states = random_states(groups, heads=2, key_heads=1)
    masks = tail_masks(groups, torch.device("cpu"))
    assert [tuple(mask.shape) for mask in masks] == [(2, 4), (1, 3), (1, 1)]
    assert torch.equal(shared_attention(*states, groups, masks=masks), shared_attention(*states, groups))
    none = [torch.zeros_like(mask) for mask in masks]
    assert not torch.equal(shared_attention(*states, groups, masks=none), shared_attention(*states, groups))


# Behind the interface of transformers

GROUPS = placed([(2, [1, 2])])


class SomeAttention(nn.Module):
    pass


def ask(**others):
    states = random_states(GROUPS, heads=2, key_heads=1)
    mask = others.pop("attention_mask", None)
    return states, hugging_face_attention(SomeAttention(), *states, mask, **{"segments": Segments.of(GROUPS), **others})


def test_it_answers_with_heads_last_and_takes_what_changes_nothing():
    states, (out, weights) = ask(scaling=0.7, dropout=0.0, sliding_window=None, position_ids=torch.arange(5)[None])
    assert weights is None
    assert out.shape == (1, 5, 2, 3)
    torch.testing.assert_close(out, dense_attention(*states, GROUPS, 0.7).transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sliding_window", 4),
        ("softcap", 50.0),
        ("s_aux", torch.zeros(2)),
        ("position_bias", torch.zeros(1)),
        ("attention_mask", torch.ones(1, 1, 5, 5)),
        ("dropout", 0.1),
    ],
)
def test_it_refuses_what_it_does_not_compute(name, given):
    with pytest.raises(AttentionError, match=f"^SomeAttention asks its attention for {name}$"):
        ask(**{name: given})


def test_it_names_everything_that_it_refuses():
    with pytest.raises(AttentionError, match=r"for s_aux, softcap, dropout$"):
        ask(softcap=1.0, s_aux=torch.zeros(1), dropout=0.5)


def test_it_refuses_to_guess_the_groups():
    with pytest.raises(AttentionError, match="SomeAttention does not pass on the groups"):
        ask(segments=None)


def test_transformers_knows_it_by_our_name():
    tiny_model("llama")
    assert AttentionInterface()[SHARED] is hugging_face_attention


# Where every group has a row


def test_tails_apart_by_hand():
    """A shared token, tails of one and two; a group of one token and three pads. Causality is joined by the model."""
    mask = tails_apart((Group(0, 1, (1, 2)), Group(4, 1, ())), 2, 4, torch.device("cpu"))
    assert (mask.shape, mask.dtype) == ((2, 1, 4, 4), torch.bool)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]
    assert mask[1, 0].all()


@pytest.mark.parametrize("seed", range(10))
def test_tails_apart_with_causality_is_what_a_position_sees(seed):
    groups = random_groups(seed)
    width = max(total([group]) for group in groups)
    mask = tails_apart(groups, len(groups), width, torch.device("cpu"))
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    for row, group in enumerate(groups):
        length = total([group])
        alone = visible([group._replace(start=0)])
        assert torch.equal((mask[row, 0] & causal)[:length, :length], alone)
