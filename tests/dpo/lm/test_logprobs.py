import math

import pytest
import torch

from dpo.lm.batch import collate, collate_shared
from dpo.lm.head import target_logps
from dpo.lm.logprobs import LogprobModel, Way, sequence_logps
from dpo.lm.sequences import TokenSequence
from tests.dpo.tiny import CONFIGS, VOCABULARY, sequence, tiny_model
from tests.oracles import dpo_oracle

SEQUENCES = [
    sequence([1, 2, 3], [4, 5, 6, 7]),
    sequence([8], [9, 10]),
    sequence([11, 12, 13, 14, 15], [16]),
    sequence([1, 2, 3], [4, 20]),
    TokenSequence([2, 2], [17, 18, 19], [True, False, True]),
]
WAYS = [Way(True, True), Way(False, True), Way(False, False)]


def test_by_hand():
    """Two words: logits (0, ln 3) give 1/4 and 3/4, logits (0, 0) give 1/2 each."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    found = target_logps(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(found.logps, torch.tensor([math.log(3 / 4), math.log(1 / 2)]))
    assert found.agreement is None and found.entropy is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_the_oracle(dtype, tolerance):
    logits = (3 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0))).to(dtype)
    ids = [3, 1, 4, 1, 5, 9, 2]
    logps = target_logps(logits[:-1], torch.tensor(ids[1:])).logps
    assert logps.dtype == dtype
    expected = dpo_oracle.token_logps(logits.tolist(), ids, [True] * 7)
    assert logps.tolist() == pytest.approx(expected, abs=tolerance)


def test_sums_are_taken_in_float64():
    """-2^24 - 1 is no float32: a float32 sum would lose the last nat."""
    batch = collate([sequence([1], [2, 3]), sequence([1], [4])], pad_id=0)
    assert sequence_logps(batch, torch.tensor([-(2.0**24), -1.0, -3.0])).tolist() == [-(2.0**24) - 1, -3.0]


def oracle_token_logps(model, one):
    """Of one sequence alone, so that neither padding nor sharing can have helped."""
    ids = [*one.prompt_ids, *one.completion_ids]
    scored = [False] * len(one.prompt_ids) + list(one.mask)
    return dpo_oracle.token_logps(model(torch.tensor([ids]))[0].tolist(), ids, scored)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_answers_with_the_oracles_logps(name, way):
    """Token by token, in the order of the sequences."""
    model = tiny_model(name)
    ours = LogprobModel(model, way)
    batch = ours.collate(SEQUENCES, pad_id=0)
    assert (batch.groups is not None) == way.shared
    expected = [oracle_token_logps(model, one) for one in SEQUENCES]
    assert ours(batch).logps.tolist() == pytest.approx([logp for one in expected for logp in one], abs=1e-5)
    assert sequence_logps(batch, ours(batch).logps).tolist() == pytest.approx([sum(e) for e in expected], abs=2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_agreement_is_of_the_same_places(name, way):
    """log sum p^2 at the position that predicts each scored token."""
    model = tiny_model(name)
    ours = LogprobModel(model, way)
    found = ours(ours.collate(SEQUENCES, pad_id=0), agreement=True)
    expected = []
    for one in SEQUENCES:
        chances = model(torch.tensor([[*one.prompt_ids, *one.completion_ids]]))[0].softmax(-1)
        places = [len(one.prompt_ids) + i - 1 for i, scored in enumerate(one.mask) if scored]
        expected += chances[places].square().sum(-1).log().tolist()
    assert found.agreement.tolist() == pytest.approx(expected, abs=1e-5)
    assert not found.agreement.requires_grad
    assert torch.equal(found.logps, ours(ours.collate(SEQUENCES, pad_id=0)).logps)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_without_scored_tokens_is_empty_and_differentiable(name, way):
    ours = LogprobModel(tiny_model(name), way)
    batch = ours.collate([TokenSequence([1, 2], [3], [False]), TokenSequence([1, 2], [4], [False])], pad_id=0)
    found = ours(batch, agreement=True)
    assert (found.logps.shape, found.agreement.shape) == ((0,), (0,))
    assert sequence_logps(batch, found.logps).tolist() == [0.0, 0.0]
    sequence_logps(batch, found.logps).sum().backward()
    assert not any(p.grad.any() for p in ours.parameters() if p.grad is not None)


def sums_and_gradients(model, batch, sequences):
    """Weighted, so that a sequence which takes another's place is noticed by the gradients too."""
    model.zero_grad()
    sums = sequence_logps(batch, LogprobModel(model)(batch).logps)
    weights = torch.tensor([s.prompt_ids[0] + len(s.completion_ids) for s in sequences])
    (sums * weights).sum().backward()
    return sums.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    """More pads, and another pad token: made by a longer sequence beside them, whose weight is 0."""
    model = tiny_model(name)
    longer = [*SEQUENCES, TokenSequence([20], [1] * 14, [False] * 14)]
    for layout in (collate, lambda s, pad: collate_shared(s, pad, row_each=True)):
        if layout is not collate and not model.row_each:
            continue
        batch, wider = layout(SEQUENCES, 0), layout(longer, VOCABULARY - 1)
        assert wider.input_ids.shape[1] == 15 > batch.input_ids.shape[1]
        sums, gradients = sums_and_gradients(model, batch, SEQUENCES)
        wide_sums, wide_gradients = sums_and_gradients(model, wider, longer)
        torch.testing.assert_close(wide_sums[:-1], sums, atol=1e-5, rtol=0)
        torch.testing.assert_close(wide_gradients, gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("name", CONFIGS)
def test_order_changes_nothing(name, layout):
    model = tiny_model(name)
    order = [2, 0, 4, 3, 1]
    moved_sequences = [SEQUENCES[i] for i in order]
    batches = [LogprobModel(model, Way(layout == "shared")).collate(s, 0) for s in (SEQUENCES, moved_sequences)]
    sums, gradients = sums_and_gradients(model, batches[0], SEQUENCES)
    moved, moved_gradients = sums_and_gradients(model, batches[1], moved_sequences)
    assert len({round(value, 3) for value in sums.tolist()}) == 5  # all differ, so an exchange would show
    torch.testing.assert_close(moved, sums[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved_gradients, gradients, atol=1e-4, rtol=1e-4)


def test_the_head_is_called_on_scored_positions_only():
    """Five sequences have 11 scored tokens; two of one prompt both score their first, 4: ten different."""
    model = tiny_model("llama")
    rows = []
    model.head().register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    for way, expected in ((Way(True), 10), (Way(False), 11)):
        ours = LogprobModel(model, way)
        assert len(ours(ours.collate(SEQUENCES, pad_id=0)).logps) == 11
        assert rows.pop() == expected
