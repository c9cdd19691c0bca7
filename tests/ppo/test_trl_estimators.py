"""Advantages without values against what TRL's GRPO and RLOO trainers compute of the same answers.

TRL has no functions of its own for them: its trainers generate, score and estimate in one go, and that is run here.
"""

import pytest
import torch

from ppo.estimators import answer_rewards, groups_of, grpo_advantages, rloo_advantages
from ppo.losses import logprobs_from_logits
from ppo.rewards import compute_rewards
from tests.ppo import tiny

trl = pytest.importorskip("trl", reason="TRL is an optional extra: pip install -e '.[test]'")
datasets = pytest.importorskip("datasets", reason="an optional extra: pip install -e '.[test]'")
pytestmark = pytest.mark.filterwarnings("ignore")

SCORES = [1.0, 2.0, 6.0, 0.5, -1.0, 0.25, 3.0, 3.0]  # of two prompts with four answers each
PROMPTS = ["w2 w3"] * 4 + ["w5 w6"] * 4  # of one length: TRL gives no positions, so that left padding shifts log-probs


def scored(completions, **_):
    """Whatever the answers are."""
    return SCORES[: len(completions)]


def generated(kind, folder, **settings):
    """What TRL's trainer makes of two prompts: answers, their mask, log-probs, advantages."""
    tokenizer = tiny.tokenizer("left")
    tiny.gpt2(1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}[kind](
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=5,
        use_cpu=True, report_to=[], bf16=False, **settings,
    )  # fmt: skip
    trainer = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}[kind](
        model=str(folder / "model"),
        reward_funcs=scored,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    trainer.model.eval()
    found = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS])
    return trainer, found


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo(tmp_path, scale):
    _, found = generated("grpo", tmp_path, beta=0.0, scale_rewards=scale)
    groups = groups_of([row[mask.bool()] for row, mask in zip(found["prompt_ids"], found["prompt_mask"], strict=True)])
    assert groups.tolist() == [0] * 4 + [1] * 4
    ours = grpo_advantages(torch.tensor(SCORES), groups, scale)
    torch.testing.assert_close(ours, found["advantages"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rloo(tmp_path, beta, normalize):
    """With the penalty in the reward: log-probs of both models are computed here, from the same answers."""
    trainer, found = generated("rloo", tmp_path, beta=beta, normalize_advantages=normalize)
    answers, mask = found["completion_ids"], found["completion_mask"]
    ids = torch.cat([found["prompt_ids"], answers], 1)
    attended = torch.cat([found["prompt_mask"], mask], 1)
    reference = tiny.gpt2(1)
    with torch.no_grad():
        own, other = (
            logprobs_from_logits(model(input_ids=ids, attention_mask=attended).logits[:, :-1], ids[:, 1:])[
                :, -answers.shape[1] :
            ]
            for model in (trainer.model, reference)
        )
    rewards = compute_rewards(torch.tensor(SCORES), own, other, mask, beta)
    assert float(((own - other) * mask).sum(-1).abs().max()) > 0.1
    ours = rloo_advantages(answer_rewards(rewards.rewards, mask), groups_of(list(found["prompt_ids"])), normalize)
    torch.testing.assert_close(ours, found["advantages"], rtol=1e-5, atol=1e-5)
