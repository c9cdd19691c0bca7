import pytest
import torch

from dpo.batch import PairBatch, collate, collate_pairs, scatter_scored
from dpo.pairs import TokenSequence
from tests.dpo.tiny import sequence


def test_what_is_where():
    """Two sequences of 4 and 3 tokens with pad 9; a mask may leave completion tokens out."""
    batch = collate([sequence([1, 2], [3, 4]), TokenSequence([5], [6, 7], [False, True])], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 9]]
    assert batch.completion_mask.tolist() == [[False, False, True, True], [False, False, True, False]]
    assert (batch.input_ids.dtype, batch.completion_mask.dtype) == (torch.int64, torch.bool)
    assert batch.tokens == 8  # the pad is computed too


def test_a_pad_that_is_also_a_token_is_not_scored_as_padding_nor_lost_as_a_token():
    """Pad 4 is also the end token: the mask comes from lengths, never from comparing ids."""
    batch = collate([sequence([1], [2, 4]), sequence([1], [3, 2, 4])], pad_id=4)
    assert batch.input_ids.tolist() == [[1, 2, 4, 4], [1, 3, 2, 4]]
    assert batch.completion_mask.tolist() == [[False, True, True, False], [False, True, True, True]]


def test_pairs_are_the_chosen_ones_then_the_rejected():
    chosen, rejected = [sequence([1], [2]), sequence([3], [4])], [sequence([1], [5, 6]), sequence([3], [7])]
    batch = collate_pairs(chosen, rejected, pad_id=0)
    assert isinstance(batch, PairBatch)
    ours, theirs = PairBatch.split(batch.input_ids)
    assert ours.tolist() == [[1, 2, 0], [3, 4, 0]]
    assert theirs.tolist() == [[1, 5, 6], [3, 7, 0]]


def test_sides_of_different_length_are_not_pairs():
    with pytest.raises(ValueError, match="1 chosen sides and 2 rejected ones"):
        collate_pairs([sequence([1], [2])], [sequence([1], [2]), sequence([1], [3])], pad_id=0)


def test_to_keeps_the_type_and_moves_both_tensors():
    batch = collate_pairs([sequence([1], [2])], [sequence([1], [3])], pad_id=0).to(torch.device("meta"))
    assert isinstance(batch, PairBatch)
    assert (batch.input_ids.device.type, batch.completion_mask.device.type) == ("meta", "meta")


def test_scattered_values_lie_where_token_logps_lie():
    """Completion tokens stand at 2, 3 and at 2 alone; in [N, T-1] that is 1, 2 and 1."""
    batch = collate([sequence([1, 2], [3, 4]), TokenSequence([5], [6, 7], [False, True])], pad_id=9)
    values = scatter_scored([[-0.5, -1.5], [-2.5]], batch.completion_mask)
    assert values.tolist() == [[0.0, -0.5, -1.5], [0.0, -2.5, 0.0]]
    assert values.dtype == torch.float32


def test_scatter_refuses_other_counts_than_the_mask_has():
    mask = torch.tensor([[False, True, True], [False, True, False]])
    # The total is right: only the rows differ, so values would have moved to a neighbour.
    with pytest.raises(ValueError, match=r"\[2, 1\], values given: \[1, 2\]"):
        scatter_scored([[-1.0], [-2.0, -3.0]], mask)
