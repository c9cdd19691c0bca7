"""PPOConfig: defaults, derived numbers, refusals."""

import pytest

from ppo import PPOConfig

DEFAULTS = {
    "seed": 0, "steps": 20000, "learning_rate": 1.41e-5, "adap_kl_ctrl": True, "init_kl_coef": 0.2, "kl_penalty": "kl",
    "target": 6, "horizon": 10000, "gamma": 1, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1,
    "batch_size": 128, "mini_batch_size": 128, "gradient_accumulation_steps": 1, "ppo_epochs": 4,
    "max_grad_norm": None, "early_stopping": False, "target_kl": 1, "compare_steps": 1, "ratio_threshold": 10,
    "use_score_scaling": False, "use_score_norm": False, "score_clip": None, "whiten_rewards": False,
    "remove_unused_columns": True, "log_with": None, "tracker_kwargs": {}, "accelerator_kwargs": {},
    "project_kwargs": {}, "push_to_hub_if_best_kwargs": {}, "optimize_device_cache": False,
    "gradient_checkpointing": False, "logit_temperature": 1, "early_stopping_over": "epoch",
}  # fmt: skip


def test_defaults():
    config = PPOConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert (config.backward_batch_size, config.total_ppo_epochs) == (128, 157)


def test_derived_numbers():
    config = PPOConfig(steps=100, batch_size=12, mini_batch_size=2, gradient_accumulation_steps=3)
    assert (config.backward_batch_size, config.total_ppo_epochs) == (6, 9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 8, "mini_batch_size": 3}, r"batch_size = 8 must be a multiple of .* 3 \* 1 = 3"),
        ({"batch_size": 8, "mini_batch_size": 4, "gradient_accumulation_steps": 4}, r"= 4 \* 4 = 16"),
        ({"kl_penalty": "k3"}, "'kl', 'abs', 'mse' or 'full'"),
        ({"use_score_norm": True}, "use_score_norm = True does nothing without use_score_scaling"),
        ({"push_to_hub_if_best_kwargs": {"private": True}}, "must have a repo_id, it has: private"),
        ({"target": 0}, "greater than 0"),
        ({"horizon": -1}, "greater than 0"),
        ({"score_clip": -1}, "greater than or equal to 0"),
        ({"gamma": 1.5}, "less than or equal to 1"),
        ({"learnig_rate": 1}, "learnig_rate"),
        ({"pad_for_acceleration": True, "pad_max_input_len": 512}, "pad_max_input_len = 512 must be below"),
    ],
)
def test_what_does_not_fit_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        PPOConfig(**given)
