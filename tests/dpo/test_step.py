import math

import pytest
import torch

from dpo.lm.batch import ScoredTokens, collate, collate_shared
from dpo.lm.head import Logps
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.sequences import TokenSequence
from dpo.losses import LOSSES, PairLogps
from dpo.step import Baseline, couple, pair_logps, preference_step, sft_step, wpo_weights
from dpo.terms import COUPLED, PER_TOKEN, REFERENCE_FREE, Term
from tests.dpo.tiny import CONFIGS, sequence, sharpen, tiny_model
from tests.oracles import dpo_oracle

CHOSEN = [
    sequence([1, 2, 3], [4, 5, 6]),
    sequence([7], [8, 9, 10, 11]),
    sequence([12, 13], [14]),
    TokenSequence([7], [8, 9, 3, 2], [True, True, False, True]),  # a prompt again, and a beginning
]
REJECTED = [
    sequence([1, 2, 3], [15]),
    sequence([7], [16, 17]),
    sequence([12, 13], [18, 19, 20, 21, 22]),
    sequence([7], [8, 10, 2]),
]
PAIRS = len(CHOSEN)
WAYS = [Way(True), Way(False)]
SIGMOID = (Term("sigmoid", {"beta": 0.1}),)


def policy_and_reference(name):
    return sharpen(tiny_model(name), seed=1, size=0.1), tiny_model(name)


def asked(model, indices=range(PAIRS), way=Way(), agreement=False):  # noqa: B008 (immutable)
    """A batch of some pairs, and a model's answer to it."""
    ours = LogprobModel(model, way)
    batch = ours.collate([side[i] for side in (CHOSEN, REJECTED) for i in indices], pad_id=0)
    return batch, ours(batch, agreement)


def without_gradient(model, *args, **kwargs):
    with torch.no_grad():
        return asked(model, *args, **kwargs)


def oracle_loss(policy, reference, chosen, rejected, options):
    """One pair's loss, from the logits of each sequence alone."""

    def logp(model, one):
        ids = [*one.prompt_ids, *one.completion_ids]
        scored = [False] * len(one.prompt_ids) + list(one.mask)
        return dpo_oracle.completion_logp(model(torch.tensor([ids]))[0].tolist(), ids, scored)

    values = [logp(model, one) for model in (policy, reference) for one in (chosen, rejected)]
    return dpo_oracle.dpo_loss(*values, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_the_oracle(name, label_smoothing, way):
    policy, reference = policy_and_reference(name)
    options = {"beta": 0.1, "label_smoothing": label_smoothing}
    batch, ours = without_gradient(policy, way=way)
    _, theirs = without_gradient(reference, way=way)
    sums = preference_step(batch, ours, theirs.logps, (Term("sigmoid", options),))
    expected = [oracle_loss(policy, reference, *pair, options) for pair in zip(CHOSEN, REJECTED, strict=True)]
    assert min(abs(value - math.log(2)) for value in expected) > 1e-3  # or else two equal models would pass too
    assert sums.loss.item() / PAIRS == pytest.approx(sum(expected) / PAIRS, abs=1e-6)
    assert sums.metrics["loss"].item() == sums.loss.item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_policy_equal_to_reference_gives_ln_2_and_still_learns(name, way):
    policy, reference = tiny_model(name), tiny_model(name)
    _, theirs = without_gradient(reference, way=way)
    sums = preference_step(*asked(policy, way=way), theirs.logps, SIGMOID)
    assert sums.loss.item() / PAIRS == pytest.approx(math.log(2), abs=1e-6)
    assert sums.metrics["rewards/accuracies"].item() == 0
    sums.loss.backward()
    assert sum(p.grad.abs().sum() for p in policy.parameters() if p.grad is not None) > 0.01


# By hand

ONE_EACH = ScoredTokens(torch.tensor([1, 1]))


def test_rewards_are_in_units_of_beta():
    """Log-ratios 2 - 1 = 1 and 3 - 7 = -4, times 0.25: the beta of the first term that has one."""
    policy, reference = Logps(torch.tensor([2.0, 3.0])), torch.tensor([1.0, 7.0])
    hinge = Term("hinge", {"beta": 0.25})
    for mixture in ((hinge,), (Term("sft"), hinge, Term("sigmoid", {"beta": 9.0}))):
        metrics = preference_step(ONE_EACH, policy, reference, mixture).metrics
        assert (metrics["rewards/chosen"].item(), metrics["rewards/rejected"].item()) == (0.25, -1.0)
        assert (metrics["logps/chosen"].item(), metrics["logps/rejected"].item()) == (2.0, 3.0)


# Chosen sides of 2 and 1 tokens, rejected sides of 1 and 3.
UNEVEN = ScoredTokens(torch.tensor([2, 1, 1, 3]))
UNEVEN_LOGPS = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0])


def test_pair_logps_by_hand():
    logps = pair_logps(UNEVEN, UNEVEN_LOGPS)
    assert [part.tolist() for part in logps] == [[-3.0, -4.0], [-8.0, -112.0], [2, 1], [1, 3]]
    assert logps.chosen.dtype == torch.float64


def test_ld_dpo_by_hand():
    """Both pairs have one token in common length; the others count half: -1 - 2/2, -4, -8, -16 - 96/2."""
    logps = pair_logps(UNEVEN, UNEVEN_LOGPS, ld_alpha=0.5)
    assert [part.tolist() for part in logps] == [[-2.0, -4.0], [-8.0, -64.0], [2, 1], [1, 3]]
    logps = pair_logps(UNEVEN, UNEVEN_LOGPS, ld_alpha=0.0)
    assert [part.tolist() for part in logps[:2]] == [[-1.0, -4.0], [-8.0, -16.0]]


def test_ld_dpo_is_of_policy_and_reference_and_of_its_own_term_alone():
    """hinge with beta 1/4 of c - r; policy as above, the reference is -1 a token.

    Whole: c = -3 + 2, -4 + 1; r = -8 + 1, -112 + 3: 1 - 6/4 < 0 and 1 - 106/4 < 0, with the sides exchanged 1 + 6/4
    and 1 + 106/4 = 30 in all. Half: c = -2 + 1.5, -3; r = -7, -64 + 2: 1 + 6.5/4 and 1 + 59/4 = 18.375.
    """
    order = torch.tensor([3, 4, 5, 6, 0, 1, 2])
    exchanged, logps = ScoredTokens(UNEVEN.counts[[2, 3, 0, 1]]), UNEVEN_LOGPS[order]
    reference = torch.full((7,), -1.0)
    whole, half = Term("hinge", {"beta": 0.25}), Term("hinge", {"beta": 0.25}, weight=2.0, ld_alpha=0.5)
    for mixture, expected in (((whole,), 30.0), ((half,), 36.75), ((half, whole), 66.75)):
        sums = preference_step(exchanged, Logps(logps), reference, mixture)
        assert sums.loss.item() == expected
        assert sums.metrics["rewards/margins"].item() == 0.25 * -112


def test_wpo_by_hand():
    """Tokens measured against ln 1/2: means -1/2, -2 and -1, -3, whose pairs weigh e^-1.5 and e^-5."""
    aligned = torch.tensor([-0.25, -0.75, -2.0, -1.0, -2.0, -3.0, -4.0])
    agreement = torch.full((7,), -math.log(2))
    logps = (aligned + agreement).requires_grad_()
    weights = wpo_weights(UNEVEN, Logps(logps, agreement))
    assert weights.tolist() == pytest.approx([math.exp(-1.5), math.exp(-5)])
    assert not weights.requires_grad


def test_an_empty_completion_weighs_as_its_other_side():
    batch, zeros = ScoredTokens(torch.tensor([0, 1])), torch.zeros(1)
    assert wpo_weights(batch, Logps(zeros - 1, zeros)).tolist() == pytest.approx([math.exp(-1)])


def test_wpo_weighs_its_own_term_alone_and_has_no_slope():
    """Hinge terms w (1 - c + r), each policy log-prob 0 against a reference of 0: 1; weights e^-1 and 1."""
    batch = ScoredTokens(torch.tensor([1, 1, 1, 1]))
    logps = torch.zeros(4, requires_grad=True)
    policy = Logps(logps, torch.tensor([0.5, 0.0, 0.5, 0.0]))
    hinge = {"beta": 1.0}
    sums = preference_step(batch, policy, torch.zeros(4), (Term("hinge", hinge, wpo=True), Term("hinge", hinge, 10.0)))
    assert sums.loss.item() == pytest.approx(20 + math.exp(-1) + 1)
    sums.loss.backward()
    slopes = [10 + math.exp(-1), 11]
    assert logps.grad.tolist() == pytest.approx([-slopes[0], -slopes[1], *slopes])


def test_a_mean_over_tokens_by_hand():
    """Chosen sides -3 and -4 with 3 tokens in 2 pairs: sft's mean 7/3 over tokens is (7 * 2/3) / 2 over pairs.

    Beside it cpo of beta 0 gives ln 2 a pair, which no token count changes.
    """
    mixture = (Term("sft", weight=0.5), Term("cpo", {"beta": 0.0}))
    sums = preference_step(UNEVEN, Logps(UNEVEN_LOGPS), None, mixture, pairs_per_token=2 / 3)
    assert sums.loss.item() / 2 == pytest.approx(0.5 * 7 / 3 + math.log(2))


def test_sft_by_hand():
    """-(-1 - 2 - 4) = 7, and its slope in every scored log-prob is -1."""
    logps = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    sums = sft_step(Logps(logps))
    sums.loss.backward()
    assert sums.metrics["loss"].item() == sums.loss.item() == 7.0
    assert logps.grad.tolist() == [-1.0] * 3
    assert not sums.metrics["loss"].requires_grad


# Coupled losses


def pair_logps_of(chosen, rejected):
    return PairLogps(*torch.tensor([chosen, rejected], dtype=torch.float64))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_running_baseline_over_two_steps_by_hand():
    """beta 1/2. Step one: rewards 2, 1 and 0, -1, whose mean is 1/2; the loss looks at them from there.

    Step two: both rewards 2.5, so the mean of all six is 7/6.
    """
    mixture = (Term("bco_pair", {"beta": 0.5}, weight=3.0, running_baseline=True),)
    nothing = pair_logps_of([0.0, 0.0], [0.0, 0.0])
    coupling, baseline = couple(pair_logps_of([4.0, 2.0], [0.0, -2.0]), nothing, mixture, Baseline())
    assert baseline == (0.5, 4)
    terms = [-math.log(sigmoid(1.5)) - math.log(sigmoid(0.5)), -math.log(sigmoid(0.5)) - math.log(sigmoid(1.5))]
    assert coupling.values.tolist() == pytest.approx([3 * term for term in terms])
    # d/dc -log s(c/2 - 1/2) = -s(1/2 - c/2)/2, and d/dr -log s(1/2 - r/2) = s(r/2 - 1/2)/2
    assert coupling.slopes.chosen.tolist() == pytest.approx([-1.5 * sigmoid(-1.5), -1.5 * sigmoid(-0.5)])
    assert coupling.slopes.rejected.tolist() == pytest.approx([1.5 * sigmoid(-0.5), 1.5 * sigmoid(-1.5)])
    # The reference counts too: 7 - 2 = 5.
    coupling, baseline = couple(pair_logps_of([7.0], [5.0]), pair_logps_of([2.0], [0.0]), mixture, baseline)
    assert baseline == (pytest.approx(7 / 6), 6)
    expected = -math.log(sigmoid(2.5 - 7 / 6)) - math.log(sigmoid(7 / 6 - 2.5))
    assert coupling.values.tolist() == pytest.approx([3 * expected])


def test_without_a_running_term_the_baseline_stays():
    mixture = (Term("aot", {"beta": 0.5}), Term("bco_pair", {"beta": 1.0}))
    policy, reference = pair_logps_of([1.0, 2.0], [0.0, 3.0]), pair_logps_of([0.0, 1.0], [2.0, 0.0])
    assert couple(policy, reference, mixture, Baseline(0.25, 8))[1] == (0.25, 8)


def test_aot_by_hand():
    """Differences of the policy 5, 1, of the reference 0, 2: sorted 1, 5 against 0, 2 they gain 1 and 3.

    Pair one has the larger difference, so rank two's slope is its own.
    """
    policy, reference = pair_logps_of([6.0, 3.0], [1.0, 2.0]), pair_logps_of([0.0, 2.0], [0.0, 0.0])
    coupling, _ = couple(policy, reference, (Term("aot", {"beta": 1.0}),), Baseline())
    assert coupling.values.sum().item() == pytest.approx(-math.log(sigmoid(1)) - math.log(sigmoid(3)))
    assert coupling.slopes.chosen.tolist() == pytest.approx([-sigmoid(-3), -sigmoid(-1)])
    assert coupling.slopes.rejected.tolist() == pytest.approx([sigmoid(-3), sigmoid(-1)])
    part = coupling.of([1])
    assert part.values.tolist() == coupling.values[1:].tolist()
    assert [slope.tolist() for slope in part.slopes] == [slope[1:].tolist() for slope in coupling.slopes]


# Micro-batches


BETA = {"beta": 0.3}
OPTIONS = {"robust": {"label_smoothing": 0.1}, "exo_pair": {"label_smoothing": 0.1}, "aot": {"label_smoothing": 0.1}}
TERMS = {name: (Term(name, {**({} if name in ("sft", "orpo") else BETA), **OPTIONS.get(name, {})}),) for name in LOSSES}
MIXTURES = {
    **TERMS,
    "length-desensitised": (Term("sigmoid", BETA, ld_alpha=0.5),),
    "weighted": (Term("sigmoid", BETA, wpo=True),),
    "running baseline": (Term("bco_pair", BETA, running_baseline=True),),
    "mpo": (Term("sigmoid", BETA, 0.8), Term("bco_pair", BETA, 0.2), Term("sft", {}, 1.0)),
    "everything": (
        Term("sigmoid", BETA, 0.5, ld_alpha=0.3, wpo=True),
        Term("bco_pair", BETA, 0.2, running_baseline=True),
        Term("aot_unpaired", BETA, 0.7),
        Term("sft", {}, 0.1),
    ),
}


def whole_step(policy, reference, mixture, groups, way=Way()):  # noqa: B008 (immutable)
    """Loss, gradients and metrics of all pairs, in micro-batches, as a worker takes a step."""
    agreement = any(term.wpo for term in mixture)
    coupling = None
    if any(term.coupled for term in mixture):
        sums = [
            pair_logps(batch, found.logps)
            for batch, found in (without_gradient(m, way=way) for m in (policy, reference))
        ]
        coupling, _ = couple(*sums, mixture, Baseline(0.1, 10))
    pairs_per_token = PAIRS / sum(sum(s.mask) for s in CHOSEN)
    policy.zero_grad()
    totals = {}
    for group in groups:
        batch, ours = asked(policy, group, way, agreement)
        _, theirs = without_gradient(reference, group, way)
        share = None if coupling is None else coupling.of(group)
        sums = preference_step(batch, ours, theirs.logps, mixture, pairs_per_token, share)
        sums.loss.backward()
        assert not any(value.requires_grad for value in sums.metrics.values())
        for name, value in sums.metrics.items():
            totals[name] = totals.get(name, 0.0) + value.item()
    return totals, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MIXTURES)
def test_micro_batches_add_up(name):
    """Loss, gradients and metrics of two micro-batches, and of four of one pair, are those of one batch of four."""
    policy, reference = policy_and_reference("llama")
    expected, expected_gradients = whole_step(policy, reference, MIXTURES[name], [[0, 1, 2, 3]])
    assert expected_gradients.norm() > 1e-3
    for groups, way in (([[2, 0], [1, 3]], Way()), ([[0], [1], [2], [3]], Way(False))):
        found, gradients = whole_step(policy, reference, MIXTURES[name], groups, way)
        assert found == pytest.approx(expected, abs=2e-5, rel=1e-5)
        assert (gradients - expected_gradients).norm() <= 1e-5 * expected_gradients.norm()


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_coupled_loss_has_the_slope_of_the_whole_batch(name):
    """Two passes give what one differentiation of the whole batch gives."""
    policy, reference = policy_and_reference("llama")
    totals, gradients = whole_step(policy, reference, TERMS[name], [[3, 1], [0, 2]])
    policy.zero_grad()
    batch, ours = asked(policy)
    _, theirs = without_gradient(reference)
    terms = LOSSES[name](pair_logps(batch, ours.logps), pair_logps(batch, theirs.logps), **TERMS[name][0].options)
    terms.sum().backward()
    assert totals["loss"] == pytest.approx(terms.sum().item(), rel=1e-6)
    whole = torch.cat([p.grad.flatten() for p in policy.parameters()])
    assert (gradients - whole).norm() <= 1e-5 * whole.norm()


def test_the_sets_of_losses_name_losses():
    assert LOSSES.keys() >= COUPLED | PER_TOKEN | REFERENCE_FREE


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE))
def test_reference_free_terms_need_none(name):
    policy, reference = policy_and_reference("llama")
    batch, ours = without_gradient(policy)
    _, theirs = without_gradient(reference)
    without = preference_step(batch, ours, None, TERMS[name])
    assert without.loss.item() == preference_step(batch, ours, theirs.logps, TERMS[name]).loss.item()
    assert without.metrics["logps/chosen"] == pair_logps(batch, ours.logps).chosen.sum()


@pytest.mark.parametrize("layout", [collate, collate_shared])
def test_no_scored_token_at_all(layout):
    """Masks may leave nothing: log-ratios are 0 and the loss is ln 2."""
    batch = layout([TokenSequence([1], [2], [False]), TokenSequence([1], [3], [False])], 0)
    empty = torch.empty(0, requires_grad=True)
    for mixture in (SIGMOID, (Term("ipo", {"beta": 0.5}),), (Term("sigmoid", {"beta": 1.0}, ld_alpha=0.5, wpo=True),)):
        sums = preference_step(batch, Logps(empty, empty.detach()), empty.detach(), mixture)
        assert sums.loss.item() == pytest.approx(1.0 if mixture[0].kind == "ipo" else math.log(2))
        sums.loss.backward()
