import inspect
import math

import pytest
import torch

from dpo.divergences import DIVERGENCES, scores
from dpo.losses import (
    LOSSES,
    PairLogps,
    dpo_loss,
    log_odds,
    log_ratios,
    margin,
    running_mean,
)
from dpo.terms import COUPLED, PER_TOKEN, REFERENCE_FREE
from tests.oracles import dpo_oracle


def random_pairs(count=16, dtype=torch.float64, seed=0):
    """Policy and reference log-probs of `count` pairs, of the size that real completions have."""
    generator = torch.Generator().manual_seed(seed)
    values = -100 * torch.rand(4, count, generator=generator, dtype=torch.float64)
    return PairLogps(*values[:2].to(dtype)), PairLogps(*values[2:].to(dtype))


def swap(logps):
    return PairLogps(logps.rejected, logps.chosen)


def near_pairs(count=16, spread=4.0, seed=1):
    """Pairs whose log-ratios are at most `spread` (there the oracle's own ratios are exact), with token counts."""
    generator = torch.Generator().manual_seed(seed)
    reference = -30 - 30 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    policy = reference + spread * (2 * torch.rand(2, count, generator=generator, dtype=torch.float64) - 1)
    tokens = torch.randint(5, 40, (2, count), generator=generator)
    return PairLogps(*policy, *tokens), PairLogps(*reference)


def a_pair(chosen, rejected, chosen_tokens, rejected_tokens):
    values = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    return PairLogps(*values, torch.tensor([chosen_tokens]), torch.tensor([rejected_tokens]))


def oracle_pairs(policy, reference):
    rows = torch.stack([policy.chosen, policy.rejected, reference.chosen, reference.rejected], 1).tolist()
    counts = torch.stack([policy.chosen_tokens, policy.rejected_tokens], 1).tolist()
    return [dpo_oracle.Pair(*row, *count) for row, count in zip(rows, counts, strict=True)]


def test_margin_by_hand():
    """(-1 - -3) - (-5 - -4) = 2 - -1 = 3."""
    policy = PairLogps(torch.tensor([-1.0]), torch.tensor([-5.0]))
    reference = PairLogps(torch.tensor([-3.0]), torch.tensor([-4.0]))
    assert margin(policy, reference).tolist() == [3.0]


def test_dpo_by_hand():
    """Margin ln 3 with beta 1: sigma = 3/4, so the loss is ln 4/3; smoothed by 1/4: 3/4 ln 4/3 + 1/4 ln 4."""
    policy = PairLogps(torch.tensor([math.log(3)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    reference = PairLogps(torch.zeros(1), torch.zeros(1))
    assert dpo_loss(policy, reference, beta=1.0).item() == pytest.approx(math.log(4 / 3))
    smoothed = dpo_loss(policy, reference, beta=1.0, label_smoothing=0.25).item()
    assert smoothed == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_equals_the_oracle(beta, label_smoothing):
    policy, reference = random_pairs()
    loss = dpo_loss(policy, reference, beta=beta, label_smoothing=label_smoothing)
    expected = [
        dpo_oracle.dpo_loss(*values, beta=beta, label_smoothing=label_smoothing)
        for values in torch.stack([*policy[:2], *reference[:2]], 1).tolist()
    ]
    assert loss.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradients_are_right(label_smoothing):
    policy, reference = random_pairs(count=5)
    leaves = [value.clone().requires_grad_() for value in (*policy[:2], *reference[:2])]

    def loss(chosen, rejected, reference_chosen, reference_rejected):
        ours, theirs = PairLogps(chosen, rejected), PairLogps(reference_chosen, reference_rejected)
        return dpo_loss(ours, theirs, beta=0.05, label_smoothing=label_smoothing)

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-8)


def test_policy_equal_to_reference_gives_ln_2():
    policy, _ = random_pairs(dtype=torch.float32)
    loss = dpo_loss(policy, policy, beta=0.1)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([math.log(2)] * 16, abs=1e-6)


def test_swapping_the_sides_turns_the_margin_round():
    """-log sigma(h) + log sigma(-h) = -h, so the swapped loss is larger by h."""
    policy, reference = random_pairs()
    loss = dpo_loss(policy, reference, beta=0.1)
    swapped = dpo_loss(swap(policy), swap(reference), beta=0.1)
    torch.testing.assert_close(swapped - loss, 0.1 * margin(policy, reference))


def test_swapping_the_sides_swaps_the_smoothing():
    """A label that is wrong with chance e is the other label wrong with chance 1 - e."""
    policy, reference = random_pairs()
    loss = dpo_loss(policy, reference, beta=0.1, label_smoothing=0.3)
    swapped = dpo_loss(swap(policy), swap(reference), beta=0.1, label_smoothing=0.7)
    torch.testing.assert_close(swapped, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_margins_stay_finite(dtype):
    """beta 1, margins of +-10,000: the loss is 0 and 10,000, its slope 0 and -1."""
    chosen = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)
    loss = dpo_loss(PairLogps(chosen, zero), PairLogps(zero, zero), beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4]
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_a_larger_beta_presses_harder():
    """At margin 0 the slope is -beta/2."""
    for beta in (0.1, 0.5):
        chosen = torch.zeros(1, requires_grad=True)
        zero = torch.zeros(1)
        dpo_loss(PairLogps(chosen, zero), PairLogps(zero, zero), beta=beta).sum().backward()
        assert chosen.grad.item() == pytest.approx(-beta / 2)


def options_of(name):
    _, _, *options = inspect.signature(LOSSES[name]).parameters.values()
    return {option.name: option for option in options}


DIVERGENT = [name for name in LOSSES if "divergence" in options_of(name)]
# Every loss with every divergence that it takes; "" where it takes none.
KINDS = [(name, divergence) for name in LOSSES for divergence in (DIVERGENCES if name in DIVERGENT else [""])]


def usual_options(name, divergence="", **numbers):
    """What a test gives a loss: of `numbers` those that it takes, and the divergence."""
    usual = {
        "beta": 0.1,
        "label_smoothing": 0.2,
        "tau": 0.05,
        "gamma": 0.3,
        "odds_weight": 0.4,
        "baseline": -0.2,
        **numbers,
    }
    if divergence:
        usual |= {"divergence": divergence, "divergence_alpha": 0.4}
    return {option: value for option, value in usual.items() if option in options_of(name)}


def test_the_divergences_are_where_trl_has_them():
    assert set(DIVERGENT) == {"sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop"}
    assert list(DIVERGENCES) == ["reverse_kl", "forward_kl", "js", "alpha"]
    for name in DIVERGENT:
        defaults = options_of(name)
        assert (defaults["divergence"].default, defaults["divergence_alpha"].default) == ("reverse_kl", 0.5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_two_pairs_and_named_options(name):
    """Options come from a config by name: none may be positional, swallow what it does not know, or go unused."""
    policy, reference = near_pairs()
    taken = options_of(name)
    assert {option.kind for option in taken.values()} <= {inspect.Parameter.KEYWORD_ONLY}
    assert ("beta" in taken) == (name not in ("sft", "orpo"))
    usual = usual_options(name, "alpha" if name in DIVERGENT else "")
    assert usual.keys() == taken.keys()
    before = LOSSES[name](policy, reference, **usual)
    assert before.shape == (16,)
    for option in taken:
        changed = LOSSES[name](policy, reference, **{**usual, option: "js" if option == "divergence" else 0.35})
        assert not torch.equal(changed, before), option
    with pytest.raises(TypeError, match="no_such_option"):
        LOSSES[name](policy, reference, **usual, no_such_option=1.0)


# Of losses of log-ratios: options beside beta, and the value by hand at c = r = 0 with beta 0.1.
AT_ZERO = {
    "sigmoid": ({"label_smoothing": 0.2}, math.log(2)),
    "sigmoid_norm": ({}, math.log(2)),
    "hinge": ({}, 1.0),  # max(0, 1 - 0)
    "ipo": ({}, 25.0),  # (0 - 5)^2
    "robust": ({"label_smoothing": 0.2}, math.log(2)),  # (0.8 - 0.2) ln 2 / 0.6
    "exo_pair": ({"label_smoothing": 0.2}, -math.log(0.8)),  # ln 1/2 - (ln 0.8 + ln 0.2) / 2 = -ln(2 sqrt 0.16)
    "nca_pair": ({}, 2 * math.log(2)),  # ln 2 + ln 2 / 2 + ln 2 / 2
    "bco_pair": ({}, 2 * math.log(2)),
    "sppo_hard": ({}, 50.0),  # 5^2 + 5^2
    "apo_zero": ({}, 1.0),  # 1 - 1/2 + 1/2
    "apo_down": ({}, 1.0),
    "discopop": ({"tau": 0.05}, (math.log(2) + 1) / 2),
    "aot": ({"label_smoothing": 0.2}, math.log(2)),
    "aot_unpaired": ({"label_smoothing": 0.2}, math.log(2)),
}


@pytest.mark.parametrize("name", AT_ZERO)
def test_a_loss_by_hand_at_zero(name):
    options, expected = AT_ZERO[name]
    zero = a_pair(0.0, 0.0, 4, 3)
    assert LOSSES[name](zero, zero, beta=0.1, **options).item() == pytest.approx(expected)


# At c = 2, r = -3, with 4 and 3 tokens: a mean of -1/2 less one of -2, c/4 - r/3 = 3/2.
AWAY = [
    ("sigmoid_norm", {"beta": 2.0}, math.log(1 + math.exp(-3))),
    ("ipo", {"beta": 0.5}, 0.25),  # (3/2 - 1)^2
    ("aot", {"beta": 0.2}, math.log(1 + math.exp(-1))),  # one pair: its h is 5
    ("aot", {"beta": 0.2, "label_smoothing": 0.25}, math.log(1 + math.exp(-1)) + 0.25),  # -log s(-h) = h - log s(h)
    ("aot_unpaired", {"beta": 0.2}, math.log(1 + math.exp(-1))),
    ("bco_pair", {"beta": 1.0, "baseline": 0.5}, math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(-3.5))),
    ("sft", {}, 2.0),
    ("cpo", {"beta": 0.5}, math.log(1 + math.exp(-2))),
    ("cpo", {"beta": 0.5, "label_smoothing": 0.25}, math.log(1 + math.exp(-2)) + 0.5),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, math.log(1 + math.exp(-2))),  # 2 * 3/2 - 1
    ("simpo", {"beta": 2.0}, math.log(1 + math.exp(-2.5))),
]


@pytest.mark.parametrize(("name", "options", "expected"), AWAY)
def test_a_loss_by_hand(name, options, expected):
    policy, reference = a_pair(-2.0, -6.0, 4, 3), a_pair(-4.0, -3.0, 4, 3)
    assert LOSSES[name](policy, reference, **options).item() == pytest.approx(expected)


def test_orpo_by_hand():
    """Mean probabilities 1/2 and 1/4: odds 1 and 1/3, so the odds term is -ln s(ln 3) = ln 4/3."""
    policy = a_pair(4 * math.log(1 / 2), 3 * math.log(1 / 4), 4, 3)
    loss = LOSSES["orpo"](policy, policy, odds_weight=0.5).item()
    assert loss == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3))
    assert LOSSES["orpo"](policy, policy).item() == pytest.approx(math.log(2) + 0.1 * math.log(4 / 3))


def test_aot_by_hand():
    """Policy margins 5 and 1 against reference margins 0 and 2: 1 goes with 0, 5 with 2. c is 3, 2 and r -2, 3."""
    policy = PairLogps(torch.tensor([0.0, -3.0]), torch.tensor([-5.0, -4.0]))
    reference = PairLogps(torch.tensor([-3.0, -5.0]), torch.tensor([-3.0, -7.0]))
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-3))]
    assert LOSSES["aot"](policy, reference, beta=1.0).tolist() == pytest.approx(expected)
    expected = [math.log(1 + math.exp(-4)), math.log(2)]  # 2 with -2, 3 with 3
    assert LOSSES["aot_unpaired"](policy, reference, beta=1.0).tolist() == pytest.approx(expected)


# By hand at c = ln 2, r = -ln 2: the margin of the scores.
MARGINS = {
    "reverse_kl": 2 * math.log(2),
    "forward_kl": 1.5,  # 1 - 1/2 less 1 - 2
    "js": math.log(2),  # ln 4/3 less ln 2/3
    "alpha": math.sqrt(2),  # 2 (1 - 2^-1/2) less 2 (1 - 2^1/2)
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_divergence_by_hand(divergence):
    policy, zero = a_pair(math.log(2), -math.log(2), 1, 1), a_pair(0.0, 0.0, 1, 1)
    h = MARGINS[divergence]
    assert dpo_loss(policy, zero, beta=1.0, divergence=divergence).item() == pytest.approx(math.log(1 + math.exp(-h)))
    assert LOSSES["hinge"](policy, zero, beta=0.1, divergence=divergence).item() == pytest.approx(1 - 0.1 * h)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("name", "divergence"), KINDS)
def test_a_loss_equals_the_oracle(name, divergence, beta):
    policy, reference = near_pairs()
    options = usual_options(name, divergence, beta=beta)
    expected = dpo_oracle.loss_terms(name, oracle_pairs(policy, reference), **options)
    assert len(set(expected)) > 1
    assert LOSSES[name](policy, reference, **options).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "divergence"), KINDS)
def test_the_gradients_of_a_loss_are_right(name, divergence):
    policy, reference = near_pairs(count=5)
    leaves = [value.clone().requires_grad_() for value in (*policy[:2], *reference[:2])]

    def loss(chosen, rejected, reference_chosen, reference_rejected):
        ours = PairLogps(chosen, rejected, *policy[2:])
        theirs = PairLogps(reference_chosen, reference_rejected)
        return LOSSES[name](ours, theirs, **usual_options(name, divergence, beta=0.5))

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-6)
    assert torch.autograd.grad(loss(*leaves).sum(), leaves[0])[0].abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "divergence"), KINDS)
def test_a_loss_stays_finite_at_huge_margins(name, divergence, dtype, beta):
    """Of log-ratios of both signs; where the policy's own log-prob counts, of those from -10,000 up to almost 0."""
    values = [[1e4, -1e4, 0.0, 1e4, -1e4], [-1e4, 1e4, 0.0, 1e4, -1e4]]
    if name in REFERENCE_FREE:
        values = [[-1e-3, -1e4, -1e4, -1e-3, -80.0], [-1e4, -1e-3, -1e4, -1e-3, -90.0]]
    sides = torch.tensor(values, dtype=dtype, requires_grad=True)
    zero = torch.zeros(5, dtype=dtype)
    for tokens in (1, 1000):
        policy = PairLogps(*sides, *torch.full((2, 5), tokens))
        loss = LOSSES[name](policy, PairLogps(zero, zero), **usual_options(name, divergence, beta=beta))
        (gradient,) = torch.autograd.grad(loss.sum(), sides)
        assert loss.dtype == dtype
        assert loss.isfinite().all(), loss
        assert gradient.isfinite().all(), gradient
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_scores(dtype):
    """At log-ratios of +-10,000. Held at e^80 a score has no slope; 1 - e^-c goes to 1, js to ln 2 and to c + ln 2."""
    top = math.exp(80)
    ends = {"forward_kl": (1.0, -top), "js": (math.log(2), -1e4 + math.log(2)), "alpha": (2.0, -2 * top)}
    for divergence, expected in ends.items():
        c = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
        score, other = scores(c, c, divergence, 0.5)
        assert torch.equal(score, other)
        assert score.tolist() == pytest.approx(expected, rel=1e-5)
        slopes = torch.autograd.grad(score.sum(), c)[0].tolist()
        assert slopes == ([0.0, 1.0] if divergence == "js" else [0.0, 0.0])


@pytest.mark.parametrize(("divergence", "slope"), [("reverse_kl", 1.0), ("forward_kl", 1.0), ("js", 0.5), ("alpha", 1)])
def test_a_score_is_zero_where_the_models_agree(divergence, slope):
    c = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    score, _ = scores(c, c, divergence, 0.3)
    assert score.item() == pytest.approx(0.0, abs=1e-15)
    assert torch.autograd.grad(score, c)[0].item() == pytest.approx(slope)


@pytest.mark.parametrize("alpha", [1.0, 1 - 1e-7, 1 - 2e-6, 1 + 2e-6])
def test_alpha_1_is_the_reverse_kl(alpha):
    c = torch.tensor([-5.0, 0.3, 4.0])
    score, _ = scores(c, c, "alpha", alpha)
    torch.testing.assert_close(score, c, rtol=2e-5, atol=0)
    assert torch.equal(score, c) == (abs(alpha - 1) < 1e-6)


def test_alpha_0_is_the_forward_kl():
    c = torch.tensor([-5.0, 0.3, 4.0])
    torch.testing.assert_close(scores(c, c, "alpha", 0.0), scores(c, c, "forward_kl", 0.5))


@pytest.mark.parametrize("name", DIVERGENT)
def test_an_unknown_divergence_is_refused(name):
    policy, reference = near_pairs()
    with pytest.raises(ValueError, match=r"'kl'.*reverse_kl, forward_kl, js, alpha"):
        LOSSES[name](policy, reference, **{**usual_options(name), "divergence": "kl"})


@pytest.mark.parametrize("name", LOSSES)
def test_means_need_the_token_counts(name):
    """Those that take means refuse to go without; of the others the counts change nothing."""
    policy, reference = near_pairs()
    uncounted = PairLogps(*policy[:2])
    options = usual_options(name)
    if name in ("sigmoid_norm", "ipo", "simpo", "orpo"):
        for half in (uncounted, PairLogps(*policy[:3]), uncounted._replace(rejected_tokens=policy[3])):
            with pytest.raises(ValueError, match="needs chosen_tokens and rejected_tokens"):
                LOSSES[name](half, reference, **options)
        for side in ("chosen_tokens", "rejected_tokens"):  # an empty completion's sum is over one token
            empty, one = (policy._replace(**{side: torch.full((16,), count)}) for count in (0, 1))
            terms = LOSSES[name](empty, reference, **options)
            assert torch.equal(terms, LOSSES[name](one, reference, **options))
            assert terms.isfinite().all()
    else:
        expected = LOSSES[name](policy, reference, **options)
        assert torch.equal(LOSSES[name](uncounted, reference, **options), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_who_reads_the_reference(name):
    policy, reference = near_pairs()
    options = usual_options(name)
    moved = PairLogps(reference.chosen + 1, reference.rejected - 0.5)
    changed = LOSSES[name](policy, moved, **options)
    assert torch.equal(changed, LOSSES[name](policy, reference, **options)) == (name in REFERENCE_FREE)
    if name in REFERENCE_FREE:
        nothing = PairLogps(torch.full((16,), math.nan), torch.full((16,), math.nan))
        assert torch.equal(LOSSES[name](policy, nothing, **options), changed)


@pytest.mark.parametrize("name", LOSSES)
def test_whose_terms_depend_on_other_pairs(name):
    """Taken pair by pair, a loss that couples them comes to another sum; any other to the same terms."""
    policy, reference = near_pairs()
    options = usual_options(name)
    whole = LOSSES[name](policy, reference, **options)
    alone = torch.cat(
        [
            LOSSES[name](
                PairLogps(*(v[i : i + 1] for v in policy)), PairLogps(*(v[i : i + 1] for v in reference[:2])), **options
            )
            for i in range(16)
        ]
    )
    assert math.isclose(whole.sum(), alone.sum(), rel_tol=1e-9) == (name not in COUPLED)
    if name not in COUPLED:
        torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_aot_does_not_know_the_order_of_the_rows(name):
    """Nor which reference margin came with which policy margin, or, unpaired, which rejected with which chosen."""
    policy, reference = (PairLogps(*side[:2]) for side in near_pairs())
    options = usual_options(name)
    terms = LOSSES[name](policy, reference, **options)
    rows, others = torch.randperm(16, generator=torch.Generator().manual_seed(3)), torch.arange(15, -1, -1)
    chosen, rejected, reference_chosen, reference_rejected = (v[rows] for v in (*policy[:2], *reference[:2]))
    same = LOSSES[name](PairLogps(chosen, rejected), PairLogps(reference_chosen, reference_rejected), **options)
    torch.testing.assert_close(same, terms)
    if name == "aot":
        mixed = PairLogps(chosen, rejected), PairLogps(reference_chosen[others], reference_rejected[others])
    else:
        mixed = PairLogps(chosen, rejected[others]), PairLogps(reference_chosen, reference_rejected[others])
    torch.testing.assert_close(LOSSES[name](*mixed, **options), terms)
    unsorted = dpo_loss(*mixed, beta=0.1, label_smoothing=0.2)
    assert (unsorted.sum() - terms.sum()).abs() > 1e-3


def test_sft_is_divided_by_tokens():
    """Two completions of 1 and 3 tokens: the mean is over 4 tokens, not over 2 completions."""
    policy = PairLogps(
        torch.tensor([-4.0, -6.0]), torch.tensor([-1.0, -1.0]), torch.tensor([1, 3]), torch.tensor([1, 1])
    )
    assert set(PER_TOKEN) == {"sft"}
    assert (LOSSES["sft"](policy, policy).sum() / policy.chosen_tokens.sum()).item() == 2.5


def test_the_registries_name_losses():
    assert set(REFERENCE_FREE) == {"sft", "simpo", "orpo", "cpo"}
    assert set(COUPLED) == {"aot", "aot_unpaired"}
    assert LOSSES.keys() >= REFERENCE_FREE | COUPLED | PER_TOKEN
    assert LOSSES.keys() == {*AT_ZERO, *(name for name, *_ in AWAY), "orpo"}  # each by hand, above


def test_log_ratios_are_two():
    """Whoever unpacks them gets c and r, counts or none."""
    policy, reference = near_pairs()
    c, r = log_ratios(policy, reference)
    assert torch.equal(c, policy.chosen - reference.chosen)
    assert torch.equal(r, policy.rejected - reference.rejected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_completions_have_finite_odds(dtype):
    """Mean log-prob 0 on either side or on both: the gradient is that of the likelihood alone."""
    sides = torch.tensor([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = LOSSES["orpo"](PairLogps(*sides, *torch.ones(2, 3)), PairLogps(*sides))
    (gradient,) = torch.autograd.grad(loss.sum(), sides)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[0, :2].tolist() == [-1.0, -1.0]


def test_log_odds_are_exact_near_certainty():
    """In float32, against the same numbers in float64, from 1e-6 below 0 to where the odds are the probability."""
    logp = -torch.logspace(-6, 3, 50, dtype=torch.float64).float()
    expected = [x - math.log(-math.expm1(x)) for x in logp.tolist()]
    torch.testing.assert_close(
        log_odds(logp).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_running_mean_is_the_mean_of_all():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)) + 5
    mean, count = 0.0, 0.0
    for piece in values.split([1, 0, 60, 7, 32]):
        mean, count = running_mean(mean, count, piece.requires_grad_())
    assert count == 100
    assert mean == pytest.approx(values.double().mean().item(), rel=1e-12)
    assert running_mean(0.0, 0.0, torch.empty(0)) == (0.0, 0.0)
    assert running_mean(2.0, 3, torch.tensor([4.0, 8.0])) == (pytest.approx(18 / 5), 5)
