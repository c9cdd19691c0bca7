"""From lists of sequences to padded tensors and masks."""

import pytest
from torch import tensor

from ppo.inputs import (
    decoder_inputs,
    encoder_decoder_inputs,
    padded,
    positions,
    response_mask,
    rows,
    trimmed,
)

QUERIES, RESPONSES = [tensor([1, 2, 3]), tensor([4])], [tensor([5, 6]), tensor([7, 8, 9])]


def test_a_query_stands_before_its_response():
    inputs = decoder_inputs(QUERIES, RESPONSES, 0, "right")
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 5, 6], [4, 7, 8, 9, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    left = decoder_inputs(QUERIES, RESPONSES, 0, "left")
    assert left["input_ids"][1].tolist() == [0, 4, 7, 8, 9]
    assert left["attention_mask"][1].tolist() == [0, 1, 1, 1, 1]
    assert positions(left["attention_mask"])[1].tolist() == [0, 0, 1, 2, 3]


def test_the_padding_token_may_stand_in_a_text():
    inputs = decoder_inputs([tensor([5, 0])], [tensor([0, 6, 0])], 0, "right")
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1]]


@pytest.mark.parametrize(("side", "expected"), [("right", [0, 0, 1, 1, 1, 1, 0]), ("left", [0, 0, 0, 0, 1, 1, 1])])
def test_a_fixed_width(side, expected):
    """Column t stands for the token at t+1: five tokens in eight places."""
    inputs = decoder_inputs([tensor([1, 2, 3])], [tensor([5, 6, 7])], 0, side, width=8)
    mask = response_mask(inputs, [tensor([1, 2, 3])], [tensor([5, 6, 7])])
    assert inputs["input_ids"].shape == (1, 8)
    assert mask[0].tolist() == ([0, 0, 1, 1, 1, 0, 0] if side == "right" else expected)
    with pytest.raises(ValueError, match="a query with response has 6 tokens, more than the fixed length 5"):
        decoder_inputs([tensor([1, 2, 3])], [tensor([5, 6, 7])], 0, side, width=5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_covers_just_the_responses(side):
    inputs = decoder_inputs(QUERIES, RESPONSES, 0, side)
    mask = response_mask(inputs, QUERIES, RESPONSES)
    for row, response in enumerate(RESPONSES):
        assert inputs["input_ids"][row, 1:][mask[row].bool()].tolist() == response.tolist()
    some = response_mask(inputs, QUERIES, RESPONSES, [tensor([1, 0]), tensor([False, True, True])])
    assert [inputs["input_ids"][row, 1:][some[row].bool()].tolist() for row in (0, 1)] == [[5], [8, 9]]


def test_an_encoder_decoder_trains_its_first_token():
    """TRL's mask begins one token later, and a response of [start, end] has none."""
    responses = [tensor([0, 5, 6, 1]), tensor([0, 1])]
    inputs = encoder_decoder_inputs(QUERIES, responses, 0, "right", 0)
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert inputs["decoder_input_ids"].tolist() == [[0, 5, 6, 1], [0, 1, 0, 0]]
    assert inputs["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert response_mask(inputs, QUERIES, responses).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_an_encoder_decoders_response_begins_with_the_start_token():
    with pytest.raises(ValueError, match=r"responses\[1\] begins with token 5, not with the decoder's start token 0"):
        encoder_decoder_inputs(QUERIES, [tensor([0, 5]), tensor([5, 1])], 0, "right", 0)
    with pytest.raises(ValueError, match=r"responses\[0\] has no token behind"):
        encoder_decoder_inputs(QUERIES, [tensor([0]), tensor([0, 1])], 0, "right", 0)
    inputs = encoder_decoder_inputs(QUERIES, [tensor([7, 5]), tensor([7, 1])], 0, "right", None)
    assert response_mask(inputs, QUERIES, [tensor([7, 5]), tensor([7, 1])]).tolist() == [[1], [1]]


def test_a_query_may_be_too_long():
    with pytest.raises(ValueError, match="a query has 3 tokens, more than the fixed length 2"):
        padded(QUERIES, 0, "left", 2, "query")


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_that_are_padding_everywhere_go(side):
    """Of a batch of widths 5 and 4, the second row alone needs four columns; what it predicts stays where it was."""
    inputs = decoder_inputs(QUERIES, RESPONSES, 0, side)
    inputs["position_ids"] = positions(inputs["attention_mask"])
    kept, columns = trimmed(rows(inputs, [1]))
    assert kept["input_ids"].tolist() == [[4, 7, 8, 9]]
    assert kept["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert kept["position_ids"].tolist() == [[0, 1, 2, 3]]
    mask = response_mask(inputs, QUERIES, RESPONSES)[1, columns]
    assert kept["input_ids"][0, 1:][mask.bool()].tolist() == [7, 8, 9]
    assert len(mask) == 3


def test_the_columns_of_an_encoder_decoder_go_on_both_sides():
    responses = [tensor([0, 5, 6, 1]), tensor([0, 1])]
    kept, columns = trimmed(rows(encoder_decoder_inputs(QUERIES, responses, 0, "right", 0), [1]))
    assert (kept["input_ids"].tolist(), kept["decoder_input_ids"].tolist()) == ([[4]], [[0, 1]])
    assert (columns.start, columns.stop) == (0, 1)
