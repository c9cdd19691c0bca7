import numpy as np
import pytest
import torch

from dpo.lm.batch import Group, SequenceBatch, collate, collate_shared, distinct
from dpo.lm.sequences import TokenSequence
from tests.dpo.lm.trees import random_sequences
from tests.dpo.tiny import sequence

# The padded layout


def test_what_is_where():
    """Two sequences of 4 and 3 tokens with pad 9; a mask may leave completion tokens out.

    Over all rows, row 1 starts at 4. Tokens 3 and 4 of row 0 are predicted at 1 and 2; token 6 of row 1 stands at 5, is
    predicted at 4 and not scored; token 7 is predicted at 5.
    """
    batch = collate([sequence([1, 2], [3, 4]), TokenSequence([5], [6, 7], [False, True])], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert batch.sources.tolist() == [1, 2, 5]
    assert batch.targets.tolist() == [3, 4, 7]
    assert batch.scored.tolist() == [0, 1, 2]
    assert batch.counts.tolist() == [2, 1]
    assert batch.groups is None
    assert (batch.filled, batch.tokens) == (7, 8)  # the pad is computed too
    tensors = (batch.input_ids, batch.position_ids, batch.sources, batch.targets, batch.scored, batch.counts)
    assert {t.dtype for t in tensors} == {torch.int64}


def test_a_pad_that_is_also_a_token_is_not_scored_as_padding_nor_lost_as_a_token():
    """Pad 4 is also the end token: what is scored comes from lengths, never from comparing ids."""
    batch = collate([sequence([1], [2, 4]), sequence([1], [3, 2, 4])], pad_id=4)
    assert batch.input_ids.tolist() == [[1, 2, 4, 4], [1, 3, 2, 4]]
    assert batch.sources.tolist() == [0, 1, 4, 5, 6]
    assert batch.targets.tolist() == [2, 4, 3, 2, 4]
    assert batch.filled == 7


LAYOUTS = {
    "padded": collate,
    "shared": collate_shared,
    "row each": lambda sequences, pad_id: collate_shared(sequences, pad_id, row_each=True),
    "apart": lambda sequences, pad_id: collate_shared(sequences, pad_id, labels=range(len(sequences))),
    "apart, row each": lambda sequences, pad_id: collate_shared(
        sequences, pad_id, row_each=True, labels=range(len(sequences))
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_predicts_the_first_token(layout):
    """Of an empty prompt's completion 5, 6 the 6 alone is scored, though the mask has both."""
    batch = LAYOUTS[layout]([sequence([], [5, 6]), sequence([], [7])], pad_id=0)
    assert (batch.sources.tolist(), batch.targets.tolist()) == ([0], [6])
    assert batch.counts.tolist() == [1, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_may_have_nothing_scored(layout):
    batch = LAYOUTS[layout]([TokenSequence([1], [2], [False]), TokenSequence([1], [], [])], pad_id=0)
    assert batch.counts.tolist() == [0, 0]
    assert [len(t) for t in (batch.sources, batch.targets, batch.scored)] == [0, 0, 0]
    assert batch.grid(torch.empty(0)).shape == (2, 0)


# The shared layout

ONE_ALONE = sequence([7], [8])
BRANCHES = [sequence([1, 2], [3, 4, 5]), sequence([1, 2], [3, 6])]  # they have 1, 2, 3 in common


def test_a_prompt_and_a_common_beginning_stand_once():
    """Place 0: 7 8 | 1 2 3 (shared) 4 5 (a tail) 6 (a tail). Tails are predicted at 4, where their common 3 stands.

    Different (source, target): (0, 8) (3, 3) (4, 4) (4, 6) (5, 5); the two branches score (3, 3) both.
    """
    batch = collate_shared([ONE_ALONE, *BRANCHES], pad_id=9)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 3]]
    assert batch.groups == (Group(0, 2, ()), Group(2, 3, (2, 1)))
    assert batch.sources.tolist() == [0, 3, 4, 4, 5]
    assert batch.targets.tolist() == [8, 3, 4, 6, 5]
    assert batch.scored.tolist() == [0, 1, 2, 4, 1, 3]
    assert batch.counts.tolist() == [1, 3, 2]
    assert (batch.filled, batch.tokens) == (8, 8)


def test_a_row_for_each_group():
    """As above, with rows of 6: the second group starts at 6."""
    batch = collate_shared([ONE_ALONE, *BRANCHES], pad_id=9, row_each=True)
    assert batch.input_ids.tolist() == [[7, 8, 9, 9, 9, 9], [1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 3]]
    assert batch.groups == (Group(0, 2, ()), Group(6, 3, (2, 1)))
    assert batch.sources.tolist() == [0, 7, 8, 8, 9]
    assert batch.scored.tolist() == [0, 1, 2, 4, 1, 3]
    assert (batch.filled, batch.tokens) == (8, 12)


def test_nothing_shared():
    """Every sequence is a group of its own, one behind another."""
    batch = collate_shared([ONE_ALONE, *BRANCHES], pad_id=9, labels=range(9))
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 5, 1, 2, 3, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.groups == (Group(0, 2, ()), Group(2, 5, ()), Group(7, 4, ()))
    assert batch.sources.tolist() == [0, 3, 4, 5, 8, 9]
    assert batch.scored.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.tokens == 11


def test_nothing_shared_between_equal_sequences_either():
    batch = collate_shared([ONE_ALONE, ONE_ALONE], pad_id=9, labels=range(9))
    assert batch.input_ids.tolist() == [[7, 8, 7, 8]]
    assert (batch.sources.tolist(), batch.scored.tolist()) == ([0, 2], [0, 1])


def test_equal_sequences_are_laid_out_once():
    """Alone they are their group's shared part; beside another they are one tail. Their masks may differ."""
    twice = [sequence([1], [2, 3]), TokenSequence([1], [2, 3], [False, True])]
    batch = collate_shared(twice, pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3]]
    assert batch.groups == (Group(0, 3, ()),)
    assert (batch.sources.tolist(), batch.targets.tolist()) == ([0, 1], [2, 3])
    assert (batch.scored.tolist(), batch.counts.tolist()) == ([0, 1, 1], [2, 1])
    batch = collate_shared([*twice, sequence([1], [4])], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    assert batch.groups == (Group(0, 1, (2, 1)),)
    assert batch.sources.tolist() == [0, 0, 1]
    assert batch.targets.tolist() == [2, 4, 3]
    assert batch.scored.tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_completion_that_another_goes_on_from_has_no_tail(order):
    """1 | 2 is what both have, 3 the tail of the longer. The same tokens are not scored twice."""
    both = [sequence([1], [2]), sequence([1], [2, 3])]
    batch = collate_shared([both[i] for i in order], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2]]
    assert batch.groups == (Group(0, 2, (1,)),)
    assert (batch.sources.tolist(), batch.targets.tolist()) == ([0, 1], [2, 3])
    assert batch.scored.tolist() == ([0, 0, 1] if order == [0, 1] else [0, 1, 0])


def test_where_a_prompt_ends_matters():
    """1, 2 | 3 and 1 | 2, 4 begin alike, but their prompts differ: two groups."""
    batch = collate_shared([sequence([1, 2], [3]), sequence([1], [2, 4])], pad_id=0)
    assert batch.groups == (Group(0, 3, ()), Group(3, 3, ()))


def test_completions_of_an_empty_prompt_that_begin_differently_share_nothing():
    batch = collate_shared([sequence([], [1, 2]), sequence([], [3, 4])], pad_id=0)
    assert batch.groups == (Group(0, 0, (2, 2)),)
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]]
    assert (batch.sources.tolist(), batch.targets.tolist()) == ([0, 2], [2, 4])


def test_sequences_that_stand_apart_are_brought_together():
    """A prompt's completions need not be neighbours; log-probs keep the order of the sequences."""
    batch = collate_shared([BRANCHES[0], ONE_ALONE, BRANCHES[1]], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.targets[batch.scored].tolist() == [3, 4, 5, 8, 3, 6]
    assert batch.counts.tolist() == [3, 1, 2]


# Both layouts tell the same story


def spans(batch: SequenceBatch) -> list[list[list[int]]]:
    """What the layout says stands where: for each path from a first token to a last one, its places in order."""
    if batch.groups is None:
        rows, width = batch.input_ids.shape
        return [[list(range(row * width, (row + 1) * width))] for row in range(rows)]
    paths = []
    for group in batch.groups:
        shared = list(range(group.start, group.start + group.shared))
        end, own = group.start + group.shared, []
        for length in group.tails:
            own.append([*shared, *range(end, end + length)])
            end += length
        paths.append(own or [shared])
    return paths


def story(batch: SequenceBatch) -> list[tuple[list[int], int]]:
    """Of each scored token, in order: what a model sees before it, and the token itself. Positions are checked."""
    ids, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
    paths = [path for group in spans(batch) for path in group]
    told = []
    for source, target in zip(batch.sources[batch.scored].tolist(), batch.targets[batch.scored].tolist(), strict=True):
        path = next(path for path in paths if source in path)
        seen = path[: path.index(source) + 1]
        assert [positions[place] for place in seen] == list(range(len(seen)))
        told.append(([ids[place] for place in seen], target))
    return told


def expected_story(sequences: list[TokenSequence]) -> list[tuple[list[int], int]]:
    told = []
    for s in sequences:
        ids = [*s.prompt_ids, *s.completion_ids]
        for place, scored in enumerate(s.mask, start=len(s.prompt_ids)):
            if scored and place > 0:
                told.append((ids[:place], ids[place]))
    return told


def counted(sequences: list[TokenSequence]) -> list[int]:
    return [len(expected_story([s])) for s in sequences]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_scored_token_has_its_own_past(layout):
    """300 random batches of a vocabulary of 3, where much begins alike by accident; pad 2 is also a token."""
    seen = 0
    for seed in range(300):
        sequences = random_sequences(seed, vocabulary=3, shortest_prompt=0)
        batch = LAYOUTS[layout](sequences, 2)
        assert story(batch) == expected_story(sequences), seed
        assert batch.counts.tolist() == counted(sequences), seed
        pairs = list(zip(batch.sources.tolist(), batch.targets.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs), seed
        seen += len(pairs)
    assert seen > 3000


@pytest.mark.parametrize("row_each", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_groups_fill_their_rows(share, row_each):
    """A group starts where its row starts, or where the group before ends; what is left of a row is padding."""
    saved = 0
    for seed in range(300):
        sequences = random_sequences(seed, vocabulary=3, shortest_prompt=0)
        batch = collate_shared(sequences, 7, row_each, None if share else range(len(sequences)))
        assert batch.groups is not None
        lengths = [group.shared + sum(group.tails) for group in batch.groups]
        rows, width = batch.input_ids.shape
        starts = [group.start for group in batch.groups]
        if row_each:
            assert (starts, width) == ([row * width for row in range(rows)], max(lengths))
            assert (batch.input_ids == 7).sum(1).tolist() == [width - length for length in lengths]
        else:
            assert (starts, rows, width) == (np.cumsum([0, *lengths[:-1]]).tolist(), 1, sum(lengths))
        assert batch.filled == sum(lengths) == (batch.input_ids != 7).sum()
        assert all(length > 0 for group in batch.groups for length in group.tails)
        total = sum(len(s.prompt_ids) + len(s.completion_ids) for s in sequences)
        prompts = {tuple(s.prompt_ids) for s in sequences}
        assert len(batch.groups) == (len(prompts) if share else len(sequences))
        saved += total - batch.filled
    assert (saved > 3000) if share else (saved == 0)


@pytest.mark.parametrize("words", [1, 3, 50_000, 2**31])
@pytest.mark.parametrize("positions", [1, 40, 2**31])
def test_pairs_as_one_integer_are_those_of_two(words, positions):
    """Values and inverse, by numpy's own way, which sorts pairs; also for the largest positions and ids."""
    for seed in range(30):
        draw = np.random.default_rng(seed)
        count = int(draw.integers(0, 200))
        sources, targets = (draw.integers(0, largest, count) for largest in (positions, words))
        sources[: count // 3], targets[: count // 3] = positions - 1, words - 1
        both = np.stack([sources, targets], axis=1)
        expected, inverse = np.unique(both, axis=0, return_inverse=True)
        source, target, scored = distinct(sources, targets)
        assert np.array_equal(np.stack([source, target], axis=1), expected)
        assert np.array_equal(scored, inverse.reshape(-1))


def test_read_are_the_sources_each_once():
    for seed in range(50):
        batch = collate_shared(random_sequences(seed, vocabulary=3, shortest_prompt=0), 0)
        assert batch.read.tolist() == sorted(set(batch.sources.tolist()))


# Values beside a batch


def test_to_keeps_the_rest_and_moves_every_tensor():
    batch = collate_shared(BRANCHES, pad_id=0)
    moved = batch.to(torch.device("meta"))
    tensors = (moved.input_ids, moved.position_ids, moved.sources, moved.targets, moved.scored, moved.counts)
    assert {t.device.type for t in tensors} == {"meta"}
    assert (moved.groups, moved.filled) == (batch.groups, batch.filled)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_grid_by_hand(layout):
    batch = LAYOUTS[layout]([*BRANCHES, TokenSequence([1, 2], [8], [False])], pad_id=0)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64, requires_grad=True)
    grid = batch.grid(values)
    assert grid.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0], [0.0, 0.0, 0.0]]
    assert grid.dtype == torch.float64
    (grid * torch.arange(9.0).view(3, 3)).sum().backward()
    assert values.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_given_values_lie_where_log_probs_lie():
    batch = collate_shared([*BRANCHES, ONE_ALONE], pad_id=0)
    values = batch.flat([[-1.0, -2.0, -3.0], np.array([-4.0, -5.0]), (-6.0,)])
    assert values.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    assert values.dtype == torch.float32
    assert batch.grid(values).tolist() == [[-1.0, -2.0, -3.0], [-4.0, -5.0, 0.0], [-6.0, 0.0, 0.0]]


def test_a_device_is_never_asked_for_the_counts():
    """A tensor of type meta has no values, so whoever read them, as a GPU must be waited for, would fail."""
    batch = collate_shared(BRANCHES, pad_id=0)
    moved = batch.to(torch.device("meta"))
    values = moved.flat([[-1.0, -2.0, -3.0], [-4.0, -5.0]])
    assert (values.device.type, values.shape) == ("meta", (5,))
    grid = moved.grid(values.requires_grad_())
    assert (grid.device.type, grid.shape) == ("meta", (2, 3))
    grid.sum().backward()
    assert values.grad.shape == (5,)
    assert moved.on_host == tuple(batch.counts.tolist()) == (3, 2)


@pytest.mark.parametrize("values", [[[-1.0, -2.0], [-3.0, -4.0, -5.0]], [[-1.0, -2.0, -3.0]], [[-1.0] * 3, [-1.0]]])
def test_values_of_other_counts_are_refused(values):
    """Of the first the total is right: values would have moved to a neighbour."""
    with pytest.raises(ValueError, match=r"scored tokens per sequence: \[3, 2\], values given: "):
        collate_shared(BRANCHES, pad_id=0).flat(values)


def test_sequences_of_different_labels_share_nothing():
    """Two pairs of one prompt, each in a row of its own: 2 + 1 + 1 tokens, twice."""
    sequences = [sequence([1, 2], [3]), sequence([1, 2], [4]), sequence([1, 2], [5]), sequence([1, 2], [6])]
    batch = collate_shared(sequences, 0, row_each=True, labels=[0, 1, 0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 5], [1, 2, 4, 6]]
    assert collate_shared(sequences, 0, row_each=True).input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
