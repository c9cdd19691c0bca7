"""What a step is given is looked at, item by item."""

import pytest
import torch
from torch import tensor

from ppo.given import checked_step, habits

QUERIES, RESPONSES = [tensor([1, 2, 3]), tensor([4])], [tensor([5, 6]), tensor([7, 8, 9])]
SCORES = [tensor(1.0), tensor([2])]


def test_scores_become_one_tensor():
    assert checked_step(2, QUERIES, RESPONSES, [1, 2.0]).tolist() == [1.0, 2.0]
    assert not checked_step(2, QUERIES, RESPONSES, [torch.ones(1, requires_grad=True), 2.0]).requires_grad
    scores = checked_step(2, QUERIES, RESPONSES, SCORES)
    assert (scores.tolist(), scores.dtype) == ([1.0, 2.0], torch.float32)


NAN = tensor(float("nan"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": torch.ones(2, 3)}, "queries must be a list of tensors, one a sample, not Tensor"),
        ({"responses": RESPONSES[:1]}, "responses has 1 items; config.batch_size is 2"),
        ({"queries": QUERIES * 2}, "queries has 4 items; config.batch_size is 2"),
        ({"scores": ["1", 2.0]}, r"scores\[0\] must be a number or a tensor of one, not str: '1'"),
        ({"queries": [[1, 2], [3]]}, r"queries\[0\] must be a tensor, not list: \[1, 2\]"),
        ({"scores": [tensor(1.0), tensor([[2.0]])]}, r"scores\[1\] has shape \(1, 1\): a score is one number"),
        ({"scores": [tensor(1.0), tensor([2.0, 3.0])]}, r"scores\[1\] has shape \(2,\)"),
        ({"scores": [tensor(1.0), NAN]}, r"scores\[1\] = nan: a score must be a finite number"),
        ({"queries": [tensor([[1, 2]]), tensor([1])]}, r"queries\[0\] has shape \(1, 2\)"),
        ({"responses": [tensor([5]), tensor([])]}, r"responses\[1\] is empty"),
        ({"response_masks": [tensor([1]), tensor([1])]}, "response_masks.0. has 1 entries, its response 2 tokens"),
        ({"response_masks": [tensor([1, 1])]}, "response_masks has 1 items; config.batch_size is 2"),
        ({"response_masks": [tensor([0, 0]), tensor([1, 1, 1])]}, "response_masks.0. leaves no token"),
        (
            {"queries": [tensor([1.5, 2]), tensor([1])]},
            r"queries\[0\] must hold token ids, whole numbers, not torch.float32",
        ),
        ({"responses": [tensor([5]), tensor([True])]}, r"responses\[1\] must hold token ids, .* not torch.bool"),
        (
            {"responses": [tensor([5]), tensor([8, 40])]},
            r"responses\[1\] holds token 40; the model knows tokens 0 to 9",
        ),
        ({"queries": [tensor([1, -100]), tensor([1])]}, r"queries\[0\] holds token -100"),
        ({"response_masks": [tensor([0, 2]), tensor([1, 1, 1])]}, r"response_masks\[0\] holds 2: 1 is a token that"),
    ],
)
def test_what_a_step_cannot_take_is_refused(change, said):
    given = {"queries": QUERIES, "responses": RESPONSES, "scores": SCORES} | change
    with pytest.raises(ValueError, match=said):
        checked_step(2, **given, vocabulary=10)


SAID = {
    "a query begins or ends with the padding token": ([tensor([0, 4]), tensor([5])], [tensor([6]), tensor([7])]),
    "a response ends with the padding token": ([tensor([4]), tensor([5])], [tensor([6, 0]), tensor([7])]),
    "a response goes on behind its end token": ([tensor([4]), tensor([5])], [tensor([6, 1, 1]), tensor([7])]),
    "every response begins with its query": ([tensor([4]), tensor([5])], [tensor([4, 6]), tensor([5, 7])]),
}


@pytest.mark.parametrize("phrase", SAID)
def test_forms_that_are_probably_meant_otherwise_are_told(phrase):
    (found,) = habits(*SAID[phrase], 0, [1], False)
    assert found.startswith(phrase)


def test_usual_forms_are_not_told():
    """One response that happens to begin as its query; an end token; a padding token that is the end token."""
    queries, responses = [tensor([4]), tensor([5])], [tensor([4, 6, 1]), tensor([8, 1])]
    assert habits(queries, responses, 0, [1], False) == []
    assert habits([tensor([1, 4, 1])], [tensor([5, 1])], 1, [1], False) == []
    assert habits(queries, [tensor([0, 4, 1]), tensor([0, 5, 1])], 0, [1], True) == []
