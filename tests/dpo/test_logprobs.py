import math

import pytest
import torch

from dpo.batch import collate
from dpo.logprobs import LogprobModel, sequence_logps, token_logps
from tests.dpo.tiny import CONFIGS, VOCABULARY, sequence, tiny_model
from tests.oracles import dpo_oracle

SEQUENCES = [
    sequence([1, 2, 3], [4, 5, 6, 7]),
    sequence([8], [9, 10]),
    sequence([11, 12, 13, 14, 15], [16]),
    sequence([2, 2], [17, 18, 19]),
]


def test_by_hand():
    """Two words: logits (0, ln 3) give 1/4 and 3/4, logits (0, 0) give 1/2 each.

    The sequence is 0, 1, 0: its token 1 at place 1 has log 3/4, its token 0 at place 2 has log 1/2. The last logits
    predict nothing that is there.
    """
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [50.0, 0.0]]])
    logps = token_logps(logits, torch.tensor([[0, 1, 0]]), torch.tensor([[False, True, True]]))
    torch.testing.assert_close(logps, torch.tensor([[math.log(3 / 4), math.log(1 / 2)]]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_the_oracle(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 7, 11, generator=generator)).to(dtype)
    ids = torch.randint(11, (5, 7), generator=generator)
    mask = torch.rand(5, 7, generator=generator) < 0.5
    mask[0], mask[1] = False, True  # nothing scored; everything, where place 0 has no prediction
    logps = token_logps(logits, ids, mask)
    assert logps.shape == (5, 6)
    assert logps.dtype == dtype
    for row in range(5):
        expected = dpo_oracle.token_logps(logits[row].tolist(), ids[row].tolist(), mask[row].tolist())
        assert logps[row][mask[row, 1:]].tolist() == pytest.approx(expected, abs=tolerance)
        assert not logps[row][~mask[row, 1:]].any()


def test_bfloat16_logits_are_normalised_in_float32():
    """2,048 equal logits: log(1/2048) = -7.6246, which bfloat16 can only write as -7.625."""
    logits = torch.zeros(1, 2, 2048, dtype=torch.bfloat16)
    logps = token_logps(logits, torch.tensor([[0, 1]]), torch.tensor([[False, True]]))
    assert logps.dtype == torch.float32
    assert logps.item() == pytest.approx(-math.log(2048), abs=1e-6)


def test_unscored_places_take_no_part():
    """Broken logits where nothing is scored change neither values nor gradients."""
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[0, [0, 2, 3]] = float("nan")
    logits.requires_grad_()
    logps = token_logps(logits, torch.tensor([[1, 2, 3, 4]]), torch.tensor([[True, False, True, False]]))
    logps.sum().backward()
    assert logps.isfinite().all()
    assert logits.grad[0].any(-1).tolist() == [False, True, False, False]
    assert logits.grad.isfinite().all()


def test_a_batch_without_scored_tokens_is_zero_and_differentiable():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    token_logps(logits, torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert not logits.grad.any()


def test_sums_are_taken_in_float64():
    """-2^24 - 1 is no float32: a float32 sum would lose the last nat."""
    logps = torch.tensor([[-(2.0**24), -1.0]])
    assert sequence_logps(logps).tolist() == [-(2.0**24) - 1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_answers_with_the_oracles_logps(name):
    model = tiny_model(name)
    batch = collate(SEQUENCES, pad_id=0)
    logps = LogprobModel(model)(batch.input_ids, batch.completion_mask)
    for row, one in enumerate(SEQUENCES):
        ids = [*one.prompt_ids, *one.completion_ids]
        logits = model(torch.tensor([ids]))[0].tolist()  # alone, so that padding cannot have helped
        scored = [False] * len(one.prompt_ids) + list(one.mask)
        assert sequence_logps(logps)[row].item() == pytest.approx(
            dpo_oracle.completion_logp(logits, ids, scored), abs=2e-5
        )


def sums_and_gradients(model, batch):
    """Weighted, so that a row which takes another's place is noticed by the gradients too."""
    model.zero_grad()
    sums = sequence_logps(LogprobModel(model)(batch.input_ids, batch.completion_mask))
    weights = batch.input_ids[:, 0] + 1.0
    (sums * weights).sum().backward()
    return sums.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    model = tiny_model(name)
    batch = collate(SEQUENCES, pad_id=0)
    longest = collate([*SEQUENCES, sequence([20], [1] * 14)], pad_id=VOCABULARY - 1)
    wider = type(batch)(longest.input_ids[:-1], longest.completion_mask[:-1])  # more pads, and another pad token
    assert wider.input_ids.shape[1] == 15 > batch.input_ids.shape[1]
    sums, gradients = sums_and_gradients(model, batch)
    wide_sums, wide_gradients = sums_and_gradients(model, wider)
    torch.testing.assert_close(wide_sums, sums, atol=1e-5, rtol=0)
    torch.testing.assert_close(wide_gradients, gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_row_order_changes_nothing(name):
    model = tiny_model(name)
    order = [2, 0, 3, 1]
    sums, gradients = sums_and_gradients(model, collate(SEQUENCES, pad_id=0))
    moved, moved_gradients = sums_and_gradients(model, collate([SEQUENCES[row] for row in order], pad_id=0))
    assert len({round(value, 3) for value in sums.tolist()}) == 4  # all rows differ, so an exchange would show
    torch.testing.assert_close(moved, sums[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved_gradients, gradients, atol=1e-4, rtol=1e-4)
