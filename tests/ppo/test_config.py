"""PPOConfig: defaults, derived numbers, refusals."""

import copy
import dataclasses
import pickle

import pytest
from transformers import HfArgumentParser

from ppo import PPOConfig
from tests.ppo import tiny
from tests.ppo.trials import QUIET, batch

pytestmark = QUIET

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


# One class for every use


def test_it_is_a_dataclass():
    config = PPOConfig(batch_size=8, mini_batch_size=2, tracker_kwargs={"wandb": {"name": "first"}})
    assert dataclasses.asdict(config)["tracker_kwargs"] == {"wandb": {"name": "first"}}
    assert dataclasses.replace(config, mini_batch_size=4).backward_batch_size == 4
    assert config.to_dict()["tracker_kwargs/wandb/name"] == "first"
    assert PPOConfig.from_dict(config.to_dict()) == PPOConfig.from_dict(dataclasses.asdict(config)) == config
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="learnig_rate"):
        PPOConfig.from_dict({"learnig_rate": 1.0})


def test_a_command_line_sets_it():
    words = "--batch_size 8 --mini-batch-size 4 --no_adap_kl_ctrl --kl_penalty mse --max_grad_norm 0.5 --log_with wandb"
    options = ["--tracker_kwargs", '{"wandb": {"name": "first"}}']
    (found,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(words.split() + options)  # type: ignore[arg-type]
    assert (found.batch_size, found.mini_batch_size, found.adap_kl_ctrl, found.kl_penalty) == (8, 4, False, "mse")
    assert (found.max_grad_norm, found.log_with, found.tracker_kwargs) == (0.5, "wandb", {"wandb": {"name": "first"}})


def test_every_key_has_its_help():
    without = [key.name for key in dataclasses.fields(PPOConfig) if not key.metadata.get("help")]
    assert without == ["global_batch_size", "global_backward_batch_size", "is_encoder_decoder", "is_peft_model"]


@dataclasses.dataclass
class Mine(PPOConfig):
    extra: int = 3


def test_a_dataclass_may_be_made_of_it():
    config = Mine(batch_size=4, mini_batch_size=2, extra=5)
    config.extra = 7
    config.check()
    assert (config.extra, config.backward_batch_size) == (7, 2)
    with pytest.raises(ValueError, match="batch_size = 4 must be a multiple"):
        Mine(batch_size=4, mini_batch_size=3)


# The fields of PPOConfig in TRL 0.4.0, 0.4.7, 0.5.0, 0.6.0, 0.7.4, 0.8.6, 0.9.6, 0.10.1, 0.11.4, and in Intel's fork.
NAMES = """
accelerator_kwargs adap_kl_ctrl backward_batch_size batch_size cliprange cliprange_value compare_steps dataset_num_proc
early_stopping exp_name forward_batch_size gamma global_backward_batch_size global_batch_size
gradient_accumulation_steps gradient_checkpointing horizon init_kl_coef is_encoder_decoder is_peft_model kl_penalty lam
learning_rate log_with max_grad_norm mini_batch_size model_name optimize_cuda_cache optimize_device_cache ppo_epochs
project_kwargs push_to_hub_if_best_kwargs query_dataset ratio_threshold remove_unused_columns reward_model score_clip
seed steps target target_kl task_name tracker_kwargs tracker_project_name use_score_norm use_score_scaling vf_coef
whiten_rewards world_size use_habana pad_for_acceleration pad_max_len pad_max_input_len
"""


def test_every_name_of_the_old_versions_is_taken():
    assert set(NAMES.split()) <= {key.name for key in dataclasses.fields(PPOConfig)}


@pytest.mark.parametrize(
    ("given", "said", "name", "value"),
    [
        ({"optimize_cuda_cache": True}, "taken as optimize_device_cache", "optimize_device_cache", True),
        ({"forward_batch_size": 4}, "taken as mini_batch_size = 4", "mini_batch_size", 4),
        ({"use_habana": True}, "use_habana does nothing here", "use_habana", True),
    ],
)
def test_old_names_are_told_once(given, said, name, value):
    with pytest.warns(UserWarning, match=said) as seen:
        config = PPOConfig(**given)
        config.check()
    assert (len(seen), seen[0].filename) == (1, __file__)
    assert getattr(config, name) == value
    config.mini_batch_size = 2
    config.check()
    assert config.mini_batch_size == 2


# Values that are assigned are checked together, where they are used


def test_values_may_be_assigned_one_after_the_other():
    config = PPOConfig()
    config.batch_size = 12
    config.mini_batch_size = 4
    config.gradient_accumulation_steps = 3
    config.check()
    assert config.backward_batch_size == 12
    with pytest.raises(AttributeError, match="PPOConfig has no key 'batchsize' to set to 8"):
        config.batchsize = 8


@pytest.mark.parametrize(
    ("name", "value", "said"), [("batch_size", 3, "batch_size = 3 must be a multiple"), ("gamma", 2.0, "gamma")]
)
def test_what_was_assigned_is_checked_by_the_trainer_and_by_its_step(name, value, said):
    config = tiny.config()
    setattr(config, name, value)
    from ppo import PPOTrainer

    with pytest.raises(ValueError, match=said):
        PPOTrainer(config, tiny.causal(), None, tiny.tokenizer())
    found = tiny.trainer()
    setattr(found.config, name, value)
    with pytest.raises(ValueError, match=said):
        found.step(*batch())


def test_zero_clips_nothing():
    """As None: a gradient of norm 0, or scores of 0, would teach nothing."""
    plain, zero = tiny.trainer(), tiny.trainer(max_grad_norm=0.0, score_clip=0.0)
    wanted, told = plain.step(*batch()), zero.step(*batch())
    assert told["ppo/mean_scores"] == wanted["ppo/mean_scores"] != 0
    assert told["ppo/loss/total"] == wanted["ppo/loss/total"]
    assert told["ppo/policy/approxkl"] > 0


def test_a_clip_range_of_zero_is_one():
    """Whatever moves is clipped, as in TRL."""
    found = tiny.trainer(cliprange=0.0, cliprange_value=0.0)
    assert found.step(*batch())["ppo/policy/clipfrac"] > 0.2


def test_a_norm_that_is_assigned_later_counts():
    found, other = tiny.trainer(learning_rate=1.0), tiny.trainer(learning_rate=1.0)
    found.config.max_grad_norm = 1e-12
    for one in (found, other):
        one.step(*batch())
    moved = [
        max(
            float((a - b).abs().max()) for a, b in zip(one.model.parameters(), tiny.causal(0).parameters(), strict=True)
        )
        for one in (found, other)
    ]
    assert moved[0] < 0.01 < moved[1]
