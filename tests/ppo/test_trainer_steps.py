"""Whole steps of PPOTrainer: what they take, refuse, change and return."""

import math

import numpy as np
import pytest
import torch
from torch import tensor

from ppo import (
    create_reference_model,
)
from tests.ppo import tiny
from tests.ppo.trials import KINDS, NO_END, QUIET, batch, everything, flat, plain, policy, same, trainer

pytestmark = QUIET


# A step

NAMES = {
    "objective": "kl kl_dist logprobs ref_logprobs kl_coef entropy",
    "ppo": "mean_non_score_reward mean_scores std_scores learning_rate",
    "tokens": "queries_len_mean queries_len_std queries_dist responses_len_mean responses_len_std responses_dist",
    "ppo/loss": "policy value total",
    "ppo/policy": "entropy approxkl policykl clipfrac advantages advantages_mean ratio",
    "ppo/returns": "mean var",
    "ppo/val": "vpred error clipfrac mean var var_explained",
    "time/ppo": "forward_pass compute_rewards compute_advantages optimize_step calc_stats total",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_tells(kind):
    """TRL's forty names and the plain log-ratio, which is the KL itself where that is the estimator."""
    found = trainer(kind)
    queries, responses, scores = batch(kind)
    stats = found.step(queries, responses, scores)
    wanted = {f"{group}/{name}" for group, names in NAMES.items() for name in names.split()}
    assert len(wanted) == 40
    assert {*stats} == wanted | {"objective/kl_k1", "ppo/policy/skipped"}
    assert stats["ppo/policy/skipped"] == 0
    assert stats["objective/kl_k1"] == pytest.approx(stats["objective/kl"], rel=1e-6)
    assert all(np.isfinite(np.asarray(value)).all() for value in stats.values())
    own, other = (
        [plain(policy(kind, seed), q, r)[0] for q, r in zip(queries, responses, strict=True)] for seed in (0, 1)
    )
    kls = [float((a - b).sum()) for a, b in zip(own, other, strict=True)]
    assert stats["objective/kl_dist"] == pytest.approx(kls, rel=1e-3, abs=1e-4)
    assert stats["objective/kl"] == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-4)
    assert stats["objective/entropy"] == pytest.approx(np.mean([-float(a.sum()) for a in own]), rel=1e-4)
    assert stats["ppo/mean_scores"] == pytest.approx(float(torch.stack(scores).mean()), rel=1e-5)
    assert stats["ppo/std_scores"] == pytest.approx(float(torch.stack(scores).std()), rel=1e-5)
    assert stats["tokens/responses_dist"].tolist() == [len(response) for response in responses]
    assert stats["tokens/queries_len_mean"] == np.mean([len(query) for query in queries])
    tokens = sum(len(a) for a in own)
    assert len(stats["ppo/policy/ratio"]) == 2 * tokens
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * sum(kls) / tokens, rel=1e-3, abs=1e-5)
    times = [value for name, value in stats.items() if name.startswith("time/")]
    assert min(times) > 0
    assert stats["time/ppo/total"] >= sum(times) - stats["time/ppo/total"]


@pytest.mark.parametrize("kind", ["abs", "mse", "full"])
def test_the_plain_log_ratio_is_told_beside_every_estimator(kind):
    data = batch()
    found, other = (tiny.trainer(kl_penalty=name).step(*data) for name in (kind, "kl"))
    assert found["objective/kl_k1"] == pytest.approx(other["objective/kl"], rel=1e-6)
    assert found["objective/kl"] != pytest.approx(found["objective/kl_k1"], rel=1e-3)
    assert found["objective/kl"] > 0  # all three are no smaller than 0 token by token


def replaced(items, at, item):
    return [item if i == at else old for i, old in enumerate(items)]


MISUSE = {
    "three queries": (lambda q, r, s, m: (q[:3], r, s, m), "queries has 3 items; config.batch_size is 4"),
    "five responses": (lambda q, r, s, m: (q, r + r[:1], s, m), "responses has 5 items"),
    "two scores": (lambda q, r, s, m: (q, r, s[:2], m), "scores has 2 items"),
    "a tensor": (lambda q, r, s, m: (q, r, torch.stack(s), m), "scores must be a list of tensors, .*not Tensor"),
    "a text": (lambda q, r, s, m: (q, r, replaced(s, 1, "0.5"), m), r"scores\[1\] must be a number or a tensor of one"),
    "too long": (
        lambda q, r, s, m: (replaced(q, 1, torch.full((70,), 3)), r, s, m),
        r"sample 1 has 7\d tokens, padded to 7\d; the model has positions for 64",
    ),
    "a matrix": (
        lambda q, r, s, m: (q, r, replaced(s, 2, torch.ones(1, 1)), m),
        r"scores\[2\] has shape \(1, 1\): a score is one number",
    ),
    "two numbers": (lambda q, r, s, m: (q, r, replaced(s, 0, torch.ones(2)), m), r"scores\[0\] has shape \(2,\)"),
    "no number": (lambda q, r, s, m: (q, r, replaced(s, 3, tensor(math.nan)), m), r"scores\[3\] = nan"),
    "a batch": (lambda q, r, s, m: (replaced(q, 1, q[1][None]), r, s, m), r"queries\[1\] has shape \(1, \d\)"),
    "ids": (lambda q, r, s, m: (q, replaced(r, 1, [2, 3]), s, m), r"responses\[1\] must be a tensor, not list"),
    "no query": (lambda q, r, s, m: (replaced(q, 0, q[0][:0]), r, s, m), r"queries\[0\] is empty"),
    "no response": (lambda q, r, s, m: (q, replaced(r, 3, r[3][:0]), s, m), r"responses\[3\] is empty"),
    "a short mask": (
        lambda q, r, s, m: (q, r, s, replaced(m, 1, m[1][:1])),
        r"response_masks\[1\] has 1 entries, its response \d tokens",
    ),
    "an empty mask": (
        lambda q, r, s, m: (q, r, s, replaced(m, 2, 0 * m[2])),
        r"response_masks\[2\] leaves no token of its response",
    ),
    "three masks": (lambda q, r, s, m: (q, r, s, m[:3]), "response_masks has 3 items"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_before_anything_changes(name):
    found = tiny.trainer(use_score_scaling=True)
    before = everything(found)
    queries, responses, scores = batch()
    change, text = MISUSE[name]
    with pytest.raises(ValueError, match=text):
        found.step(*change(queries, responses, scores, [torch.ones_like(r) for r in responses]))
    assert everything(found) == before


def test_a_sequence_beyond_the_fixed_length_is_refused_before_anything_changes():
    found = tiny.trainer(use_score_scaling=True, pad_for_acceleration=True, pad_max_len=6, pad_max_input_len=5)
    before = everything(found)
    with pytest.raises(ValueError, match="a query with response has 8 tokens, more than the fixed length 6"):
        found.step(*batch())
    assert everything(found) == before


@pytest.mark.parametrize("case", ["no start token", "nothing but it", "a mask of nothing but it"])
def test_misuse_of_an_encoder_decoder_is_refused_before_anything_changes(case):
    found = trainer("t5", use_score_scaling=True)
    before = everything(found)
    queries, responses, scores = batch("t5")
    masks = [torch.ones_like(response) for response in responses]
    if case == "no start token":
        responses[2], masks[2], text = responses[2][1:], masks[2][1:], r"responses\[2\] begins with token \d+, not with"
    elif case == "nothing but it":
        responses[2], masks[2], text = responses[2][:1], masks[2][:1], r"responses\[2\] has no token behind"
    else:
        masks[2][1:], text = 0, r"response_masks\[2\] leaves no token"
    with pytest.raises(ValueError, match=text):
        found.step(queries, responses, scores, masks)
    assert everything(found) == before


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.long])
def test_scores_of_any_kind(shape, dtype):
    queries, responses, _ = batch()
    values = [1, -2, 0, 3]
    found = [tiny.trainer().step(queries, responses, [torch.full(shape, v, dtype=dtype) for v in values])]
    found.append(tiny.trainer().step(queries, responses, [tensor(float(v)) for v in values]))
    same(*found, rtol=0, atol=0)
    assert found[0]["ppo/mean_scores"] == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_trains_against_an_own_reference_copy(kind):
    """The copy is the policy until the first update: KL 0 at first, and not at the second step."""
    model = policy(kind)
    found = tiny.trainer(model, create_reference_model(model))
    before, data = flat(model), batch(kind)
    first = found.step(*data)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["ppo/mean_non_score_reward"] == pytest.approx(0.0, abs=1e-6)
    assert (flat(model) - before).abs().max() > 1e-3
    second = found.step(*data)
    assert abs(second["objective/kl"]) > 1e-3
    assert second["ppo/loss/total"] != first["ppo/loss/total"]
    assert torch.equal(flat(found.ref_model), before)


def test_a_step_raises_what_scores_well():
    """One token is paid and all others cost: after some steps the policy says it more often."""
    model = tiny.causal()
    found = tiny.trainer(model, create_reference_model(model), init_kl_coef=0.01, batch_size=16, mini_batch_size=16)
    torch.manual_seed(0)
    paid = []
    for _ in range(8):
        queries = batch(size=16)[0]
        responses = found.generate(
            queries, batch_size=16, return_prompt=False, max_new_tokens=4, do_sample=True, top_k=0, **NO_END
        )
        scores = [(response == 7).float().mean() for response in responses]
        paid.append(float(torch.stack(scores).mean()))
        found.step(queries, responses, scores)
    assert np.mean(paid[-2:]) > np.mean(paid[:2]) + 0.2
