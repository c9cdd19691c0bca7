"""FLOP by hand, and as torch counts them while a tiny model runs."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dpo.lm.batch import collate_shared
from dpo.lm.flops import Work, forward_flops, shared_work, training_flops
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel
from dpo.lm.model_config import Shape
from dpo.lm.sequences import TokenSequence

TINY = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def test_the_shared_work_by_hand():
    """P 10, C 4, R 2: 14 squared for prompt and chosen, and 2 queries that see 11 and 12 keys, each counted twice."""
    assert shared_work(10, (4, 2)) == (16, 14**2 + 12**2 - 10**2, 6)
    assert pytest.approx(14**2 + 2 * (11 + 12) - 2) == 14**2 + 12**2 - 10**2  # half of the diagonal is left out
    assert shared_work(10, (4,), scored=3) == (14, 14**2, 3)


def test_the_work_of_several_pairs_is_the_sum():
    both = shared_work(np.array([10, 3]), (np.array([4, 1]), np.array([2, 6])))
    assert both == tuple(a + b for a, b in zip(shared_work(10, (4, 2)), shared_work(3, (1, 6)), strict=True))


def test_flops_by_hand():
    """3 layers of 24 x 32 (queries, output), 24 x 16 (keys, values) and 24 x 32 (three of SwiGLU): 13,824 numbers."""
    shape = Shape.of(TINY)
    assert shape.body == 3 * (2 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 32) == 13_824
    assert forward_flops(shape, Work(1, 0, 0)) == 2 * 13_824
    assert forward_flops(shape, Work(0, 1, 0)) == 3 * 2 * 32
    assert forward_flops(shape, Work(0, 0, 1)) == 2 * 24 * 40
    assert training_flops(shape, Work(5, 7, 2)) == 3 * (5 * 2 * 13_824 + 2 * 2 * 24 * 40) + 3.5 * 7 * 3 * 2 * 32


def test_a_pair_costs_what_torch_counts():
    """Torch counts whole squares of attention, and no attention of a fused kernel on a CPU; so it is left out here.

    The head's logits are computed twice in training, which is not useful; and the last layer computes queries, output
    and SwiGLU only where something is read.
    """
    prompt, chosen, rejected = [1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14]
    model = LogprobModel(HuggingFaceModel.random(TINY, seed=0))
    pair = [TokenSequence(prompt, completion, [True] * len(completion)) for completion in (chosen, rejected)]
    batch = collate_shared(pair, 0)
    with FlopCounterMode(display=False) as forward:
        logps = model(batch).logps
    with FlopCounterMode(display=False) as backward:
        logps.sum().backward()
    work = shared_work(len(prompt), (len(chosen), len(rejected)))
    unread = 14 - len(batch.read)
    spared = 2 * unread * (2 * 24 * 32 + 3 * 24 * 32)
    head = 2 * 24 * 40 * work.head
    counts = [_products(counted) for counted in (forward, backward)]
    linear = work._replace(attention=0)
    assert counts[0] == forward_flops(Shape.of(TINY), linear) - spared
    assert sum(counts) == training_flops(Shape.of(TINY), linear) - 3 * spared + head


def _products(counted):
    """FLOP of all but attention."""
    of_all = counted.get_flop_counts()["Global"]
    return sum(flop for name, flop in of_all.items() if "attention" not in str(name))


def test_attention_costs_what_torch_counts():
    """A causal call of n tokens: torch counts the whole square, of which a kernel needs half."""
    query = torch.randn(1, 4, 6, 8)
    with FlopCounterMode(display=False) as counted, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    one_layer = Shape.of({**TINY, "num_hidden_layers": 1})
    assert counted.get_total_flops() == 2 * forward_flops(one_layer, Work(0, shared_work(6, (0,)).attention, 0))
