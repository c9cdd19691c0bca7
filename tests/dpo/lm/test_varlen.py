"""One call of a kernel for sequences of several lengths, with a loop of exact attention in its place."""

import inspect
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

import dpo.lm.varlen
from dpo.lm.attention import shared_attention
from dpo.lm.batch import collate, collate_shared
from dpo.lm.logprobs import LogprobModel
from dpo.lm.segments import Segments
from dpo.lm.varlen import Kernel, installed, takes, varlen_attention
from tests.dpo.lm.test_attention import placed, random_states
from tests.dpo.lm.test_sharing import answer, assert_same
from tests.dpo.lm.trees import random_sequences
from tests.dpo.tiny import VOCABULARY, sequence, tiny_model

# The kernel's double, under the names that each version of torch has


def exact(query, key, value, ends, scale, grouped):
    """Attention segment by segment: the last query sees all keys, the one before all but one."""
    query_ends, key_ends, longest_query, longest_key = ends
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert type(longest_query) is type(longest_key) is int
    assert query_ends[-1] == len(query)
    assert key_ends[-1] == len(key)
    repeats = query.shape[1] // key.shape[1]
    assert repeats == 1 or grouped
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, longest = [], (0, 0)
    for q, k, v in zip(
        *(_cut(*pair) for pair in ((query, query_ends), (key, key_ends), (value, key_ends))), strict=True
    ):
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(repeats, 1)) * scale
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(repeats, 1)))
        longest = max(longest[0], len(q)), max(longest[1], len(k))
    assert longest == (longest_query, longest_key)
    return torch.cat(out)


def _cut(tensor, ends):
    return tensor.split(ends.diff().tolist())


class Double:
    """Notes what it is asked for. Its three functions have the arguments of torch 2.11, 2.12 and 2.13."""

    def __init__(self):
        self.calls, self.splits = 0, []

    def of_2_11(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        return_aux=None, scale=None, window_size=(-1, -1),
    ):  # fmt: skip
        assert window_size == (-1, 0)
        self.calls += 1
        return exact(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, grouped=False)

    def of_2_12(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None,
    ):  # fmt: skip
        assert window_size == (-1, 0)
        self.calls += 1
        return exact(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, enable_gqa)

    def of_2_13(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None,
        num_splits=None,
    ):  # fmt: skip
        assert window_size == (-1, 0)
        self.calls += 1
        self.splits.append(num_splits)
        return exact(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, enable_gqa)


VERSIONS = ("of_2_11", "of_2_12", "of_2_13")


def kernel(version):
    return Kernel(getattr(Double(), version))


def test_the_installed_kernel_has_the_names_that_the_double_has():
    """Of the newest version here; of the older ones their documentation tells."""
    if not torch.__version__.startswith("2.13."):
        pytest.skip(f"the double is that of torch 2.13, here is {torch.__version__}")
    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert names == list(inspect.signature(Double().of_2_13).parameters)


def test_every_installed_kernel_is_asked_for_causal_attention_by_its_window():
    assert installed().causal == {"window_size": (-1, 0)}
    assert installed().function is varlen.varlen_attn


def test_an_older_kernel_is_asked_by_the_older_name():
    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None, scale=None):
        return query * is_causal

    states, segments = random_states(placed([(3, [])]), 2, 2), Segments.of(placed([(3, [])]))
    assert torch.equal(varlen_attention(*states, segments, None, Kernel(older)), states[0])


# Against the loop, and against sequences that share nothing


def random_trees(seed):
    """Groups with up to eight tails; every third group has nothing in common."""
    rng = random.Random(seed)
    shapes = []
    for number in range(rng.randint(1, 4)):
        tails = [rng.randint(1, 5) for _ in range(rng.randint(0, 8))]
        shapes.append((0 if tails and number % 3 == 2 else rng.randint(0 if tails else 1, 6), tails))
    return placed(shapes)


def gradients(out, weights, states):
    return torch.autograd.grad((out * weights).sum(), states)


def weights_of(out, seed=1):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("heads", "key_heads", "scale"), [(2, 2, None), (4, 2, 0.9), (3, 1, None)])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_loop(seed, heads, key_heads, scale, version):
    groups = random_trees(seed)
    states = random_states(groups, heads, key_heads, seed=seed)
    ours = varlen_attention(*states, Segments.of(groups), scale, kernel(version))
    loop = shared_attention(*states, groups, scale)
    assert (ours - loop).abs().max() <= 1e-12
    for our_gradient, theirs in zip(*(gradients(o, weights_of(loop), states) for o in (ours, loop)), strict=True):
        assert (our_gradient - theirs).abs().max() <= 1e-11


def paths(groups):
    """The positions of each sequence: a group's shared part, and one of its tails."""
    found = []
    for group in groups:
        at = group.start + group.shared
        for tail in group.tails or (0,):
            found.append([*range(group.start, group.start + group.shared), *range(at, at + tail)])
            at += tail
    return found


@pytest.mark.parametrize("seed", range(12))
def test_equals_sequences_that_share_nothing(seed):
    """Each with its own copy of the shared part; of the copies, one hands on the gradient of the outputs."""
    groups = random_trees(seed)
    states = random_states(groups, 4, 2, seed=seed)
    ours = varlen_attention(*states, Segments.of(groups), None, kernel("of_2_13"))
    alone = paths(groups)
    positions = torch.tensor([position for path in alone for position in path])
    apart = Segments.of(placed([(len(path), ()) for path in alone]))
    assert apart.rows is None
    unshared = varlen_attention(*(state[:, :, positions] for state in states), apart, None, kernel("of_2_13"))
    assert (ours[:, :, positions] - unshared).abs().max() <= 1e-12
    first = torch.tensor([position not in positions[:place] for place, position in enumerate(positions.tolist())])
    weights = weights_of(ours)
    copied = weights[:, :, positions] * first[:, None]
    found = zip(gradients(ours, weights, states), gradients(unshared, copied, states), strict=True)
    assert max(float((a - b).abs().max()) for a, b in found) <= 1e-11


def test_the_random_trees_are_of_all_kinds():
    groups = [group for seed in range(12) for group in random_trees(seed)]
    assert {len(group.tails) for group in groups} >= {0, 1, 2, 8}
    assert any(group.shared == 0 for group in groups)


# Segments


def test_segments_by_hand():
    """Positions 0 1 | 2 | 3 4, then 5 and 6 with nothing shared, then 7 alone: 8 queries and 10 keys in 5 segments."""
    segments = Segments.of(placed([(2, [1, 2]), (0, [1, 1]), (1, [])]))
    assert segments.rows.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert segments.query_ends.tolist() == [0, 3, 5, 6, 7, 8]
    assert segments.key_ends.tolist() == [0, 3, 7, 8, 9, 10]
    assert (segments.longest_query, segments.longest_key) == (3, 4)
    moved = segments.to(torch.device("meta"))
    tensors = (moved.rows, moved.query_ends, moved.key_ends)
    assert {t.device.type for t in tensors} == {"meta"}
    assert [t.dtype for t in tensors] == [torch.int64, torch.int32, torch.int32]
    assert (moved.groups, moved.longest_key) == (segments.groups, 4)


def test_a_batch_in_one_row_has_segments():
    both = [sequence([1, 2], [3, 4]), sequence([1, 2], [5])]
    shared, apart = collate_shared(both, 0), collate_shared(both, 0, labels=[0, 1])
    assert shared.segments.rows.tolist() == [0, 1, 2, 3, 0, 1, 4]
    assert apart.segments.rows is None
    assert apart.segments.query_ends.tolist() == apart.segments.key_ends.tolist() == [0, 4, 7]
    assert shared.to(torch.device("meta")).segments.rows.device.type == "meta"
    assert collate_shared(both, 0, row_each=True).segments is None
    assert collate(both, 0).segments is None


# What is asked of whom


class Counting(TorchDispatchMode):
    """How often each operator runs; views cost nothing and are left out."""

    def __init__(self):
        super().__init__()
        self.operators = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.operators[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("version", VERSIONS)
def test_few_operators_run_beside_the_kernel(version, monkeypatch):
    """Whatever the number of groups: keys and values are gathered, and repeated where grouped heads are not taken."""
    monkeypatch.setattr("tests.dpo.lm.test_varlen.exact", lambda query, *_, **__: query)
    groups = placed([(5, [3, 4, 2])] * 16)
    segments = Segments.of(groups)
    states = random_states(groups, heads=4, key_heads=2)
    with Counting() as counting:
        varlen_attention(*states, segments, None, kernel(version))
    assert counting.operators["aten::index_select"] == 2
    assert counting.operators.total() <= 6


def test_scores_are_not_split():
    """Without gradients each segment is summed alike, whatever else is in the batch."""
    double = Double()
    states, segments = random_states(placed([(2, [1, 2])]), 2, 2), Segments.of(placed([(2, [1, 2])]))
    varlen_attention(*states, segments, None, Kernel(double.of_2_13))
    with torch.no_grad():
        varlen_attention(*states, segments, None, Kernel(double.of_2_13))
    with torch.inference_mode():
        varlen_attention(*states, segments, None, Kernel(double.of_2_13))
    assert double.splits == [None, 1, 1]


@pytest.fixture
def double(monkeypatch):
    """The double in the place of torch's kernel, for models in float32 on the CPU."""
    found = Double()
    monkeypatch.setattr(varlen, "varlen_attn", found.of_2_13)
    monkeypatch.setattr(dpo.lm.varlen, "KERNEL_TAKES", {"cpu": (torch.float32,)})
    installed.cache_clear()
    yield found
    installed.cache_clear()


@pytest.mark.parametrize("labels", [False, True])
def test_a_model_asks_it_once_a_layer(double, monkeypatch, labels):
    """Two layers with grouped heads: the log-probs and gradients of the loop, with prompts shared and not."""
    model = tiny_model("llama")
    for seed in range(6):
        sequences = random_sequences(seed, VOCABULARY)
        batch = collate_shared(sequences, 0, labels=range(len(sequences)) if labels else None)
        double.calls = 0
        ours = answer(model, batch)
        assert double.calls == 2
        with monkeypatch.context() as without:
            without.setattr(dpo.lm.varlen, "KERNEL_TAKES", {})
            assert_same(ours, answer(model, batch))
        assert double.calls == 2


def test_the_loops_masks_are_made_once_a_batch():
    """Three further tails make three masks, for two layers, forward and again."""
    model = LogprobModel(tiny_model("llama"))
    batch = model.collate([sequence([1, 2], [3, i]) for i in range(4)], 0)
    assert [len(group.tails) for group in batch.groups] == [4]
    with Counting() as counting:
        model(batch)
        model(batch)
    assert counting.operators["aten::tril"] == 3


def on(device, dtype, channels=64, of_values=64):
    """Queries and values, as far as they are looked at."""
    return [
        SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 2, 3, d)) for d in (channels, of_values)
    ]


@pytest.mark.parametrize(
    ("capability", "asked", "answer"),
    [
        ((9, 0), ("cuda", torch.bfloat16), True),
        ((8, 6), ("cuda", torch.float16), True),
        ((8, 0), ("cuda", torch.float32), False),
        ((7, 5), ("cuda", torch.float16), False),
        ((9, 0), ("cuda", torch.bfloat16, 60, 60), False),
        ((9, 0), ("cuda", torch.bfloat16, 264, 264), False),
        ((9, 0), ("cuda", torch.bfloat16, 192, 128), False),
        ((9, 0), ("cuda", torch.bfloat16, 256, 256), True),
        ((8, 9), ("cuda", torch.bfloat16, 256, 256), False),
        ((9, 0), ("cpu", torch.bfloat16), False),
    ],
)
def test_what_the_kernel_takes(monkeypatch, capability, asked, answer):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert takes(*on(*asked)) is answer
