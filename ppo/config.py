"""PPOConfig: a dataclass with the names of TRL (0.4 to 0.11) and Intel's fork, and the defaults of 0.11, checked."""

from __future__ import annotations

import json
import warnings
from dataclasses import field, fields
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from ppo.estimators import AdvantageEstimator, RewardScale
from ppo.kl import KLPenalty
from ppo.said import warn


def _options(value: Any) -> Any:
    """Options as a dictionary; a command line gives them as JSON."""
    return json.loads(value) if isinstance(value, str) else value or {}


def told(default: Any, text: str = "") -> Any:
    """A field with its default and its help."""
    return field(default=default, metadata={"help": text} if text else {})


def options(text: str) -> Any:
    """A field of options, none by default; with its help."""
    return field(default_factory=dict, metadata={"help": text})


if TYPE_CHECKING:
    Options = dict[str, Any]
else:
    Options = Annotated[dict[str, Any] | str | None, BeforeValidator(_options)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PPOConfig:
    """Every key with its default; an unknown key or a wrong value raises a ValueError (or, assigned, AttributeError).

    Batch sizes count samples of one rank. `dataclasses.fields(PPOConfig)` have what a key means in their metadata, as
    `help`. Values that are assigned later are checked together, where a trainer is made and at each step.
    """

    exp_name: str = told("ppo", "Name of the run, for trackers.")
    task_name: str | None = told(None, "For trackers, and for the script that reads it.")
    model_name: str | None = told("gpt2", "For trackers, and for the script that reads it.")
    query_dataset: str | None = told("stanfordnlp/imdb", "For trackers, and for the script that reads it.")
    reward_model: str | None = told(
        "sentiment-analysis:lvwerra/distilbert-imdb", "For trackers, and for the script that reads it."
    )
    dataset_num_proc: int | None = told(None, "For the script that reads it.")
    seed: int = told(0, "Of sampling (plus the rank), and of the order of samples within a step.")
    steps: Count = told(20000, "Samples to train on in all; only total_ppo_epochs is made of it.")
    learning_rate: NotNegative = told(1.41e-5, "Of the optimizer that is made when none is given.")

    adap_kl_ctrl: bool = told(True, "Move the KL coefficient so that the KL comes to `target`.")
    init_kl_coef: NotNegative = told(0.2, "What a nat of KL costs, in units of the score, at first.")
    kl_penalty: KLPenalty = told(
        "kl", "kl: log-ratio; abs: its size; mse: half its square; full: KL over the vocabulary."
    )
    target: Positive = told(6.0, "KL of a response, summed over its tokens, in nats.")
    horizon: Positive = told(10000.0, "The larger, the slower the coefficient moves: 1/5 a horizon at most.")

    gamma: Share = told(1.0, "Discount a token.")
    lam: Share = told(0.95, "Lambda of generalized advantage estimation.")
    cliprange: NotNegative = told(0.2, "How far the probability ratio may leave 1.")
    cliprange_value: NotNegative = told(0.2, "How far a value may leave what it was before the step.")
    vf_coef: NotNegative = told(0.1, "Weight of the value loss beside the policy loss.")

    advantage_estimator: AdvantageEstimator = told(
        "gae",
        "gae: from values; rloo, grpo: an answer's reward against those of the other answers to its query, without "
        "values, so that lam, vf_coef and cliprange_value do nothing.",
    )
    answers_per_prompt: Count = told(
        1, "Times that dataloader gives each query; rloo and grpo need at least 2 answers to each."
    )
    normalize_advantages: bool = told(False, "rloo: scale a batch's advantages to mean 0, deviation 1.")
    scale_rewards: RewardScale = told(
        "group", "grpo: divide by the deviation of a query's rewards, of the whole batch's, or not (none)."
    )

    batch_size: Count = told(128, "Samples a step takes.")
    mini_batch_size: Count = told(128, "Samples in one forward and backward pass.")
    forward_batch_size: int | None = told(None, "The old name of mini_batch_size.")
    gradient_accumulation_steps: Count = told(1, "Such passes in one update of the weights.")
    group_mini_batches: bool = told(
        False, "Keep answers of one prompt together in the order of samples: they compute it once."
    )
    ppo_epochs: Count = told(4, "Times a step goes through its batch.")
    max_grad_norm: NotNegative | None = told(None, "Clip the gradient of an update to this norm; 0 or None: do not.")

    early_stopping: bool = told(False, "Leave out a step's further epochs once policykl is too high.")
    target_kl: Positive = told(1.0, "Stop a step after the epoch whose policykl is 1.5 times this.")
    early_stopping_over: Literal["epoch", "last"] = told(
        "epoch", "policykl of all tokens of the epoch, or, as TRL has it, of the last mini-batch."
    )
    compare_steps: Count = told(1, "Steps between two comparisons of the mean score with the best so far.")
    push_to_hub_if_best_kwargs: Options = options(
        "Push the model with these arguments (repo_id) whenever the mean score was never higher."
    )
    ratio_threshold: Positive = told(10.0, "A mini-batch of a higher mean ratio changes nothing.")

    use_score_scaling: bool = told(False, "Divide scores by their running standard deviation.")
    use_score_norm: bool = told(False, "Subtract their running mean first; needs use_score_scaling.")
    score_clip: NotNegative | None = told(None, "Then clip them to plus and minus this; 0 or None: do not.")
    whiten_rewards: bool = told(False, "Scale rewards of tokens to variance 1 before advantages.")
    logit_temperature: Positive = told(
        1.0, "Divide logits by this before log-probs: the temperature of sampling, to stay on-policy."
    )

    gradient_checkpointing: bool = told(False, "Compute activations again in the backward pass.")
    remove_unused_columns: bool = told(True, "Drop a data set's columns that nothing here reads.")
    pad_for_acceleration: bool = told(False, "Pad to fixed lengths, for hardware that compiles shapes.")
    pad_max_len: Annotated[int, Field(ge=2)] = told(512, "Length of query with response, if pad_for_acceleration.")
    pad_max_input_len: Count = told(128, "Length of a query, if pad_for_acceleration.")
    optimize_device_cache: bool = told(False, "Empty the device's cache after every step.")
    optimize_cuda_cache: bool | None = told(None, "The old name of optimize_device_cache.")
    use_habana: bool = told(False, "Does nothing here: accelerate chooses the device.")

    log_with: str | None = told(None, "A tracker of accelerate: wandb, tensorboard (needs project_kwargs), mlflow, ...")
    tracker_project_name: str = told("ppo", "Name of the project, for trackers.")
    tracker_kwargs: Options = options("For the tracker, such as {'wandb': {'name': 'first'}}.")
    project_kwargs: Options = options("For accelerate's ProjectConfiguration, such as {'logging_dir': 'logs'}.")
    accelerator_kwargs: Options = options("For accelerate's Accelerator.")

    backward_batch_size: int | None = told(None, "Samples in one update of the weights: computed, whatever is given.")
    world_size: int | None = told(None, "This and what follows is written by the trainer.")
    global_batch_size: int | None = told(None)
    global_backward_batch_size: int | None = told(None)
    is_encoder_decoder: bool | None = told(None)
    is_peft_model: bool | None = told(None)

    def __post_init__(self) -> None:
        if self.forward_batch_size is not None:
            warn(f"forward_batch_size is taken as mini_batch_size = {self.forward_batch_size}: give that instead")
            self.mini_batch_size, self.forward_batch_size = self.forward_batch_size, None
        if self.optimize_cuda_cache is not None:
            warn("optimize_cuda_cache is taken as optimize_device_cache: give that instead")
            self.optimize_device_cache |= self.optimize_cuda_cache
            self.optimize_cuda_cache = None
        if self.use_habana:
            warn("use_habana does nothing here: accelerate chooses the device, see accelerator_kwargs")
        self._fits()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {key.name for key in fields(self)} and not name.startswith("_"):
            raise AttributeError(
                f"PPOConfig has no key {name!r} to set to {value!r}: dataclasses.fields() has them all"
            )
        super().__setattr__(name, value)
        if name in ("mini_batch_size", "gradient_accumulation_steps", "backward_batch_size"):
            vars(self)["backward_batch_size"] = self.mini_batch_size * self.gradient_accumulation_steps

    @property
    def prompts(self) -> int:
        """Samples of the data set in one batch."""
        return self.batch_size // self.answers_per_prompt

    @property
    def value_weight(self) -> float:
        """`vf_coef`, or 0 where values are not learned."""
        return self.vf_coef if self.advantage_estimator == "gae" else 0.0

    @property
    def total_ppo_epochs(self) -> int:
        """Steps that see `steps` samples."""
        return ceil(self.steps / self.batch_size)

    def check(self) -> None:
        """Look at all values together, those that were assigned later as well.

        Raises:
            ValueError: one of them is wrong, or does not fit the others.
        """
        known = {key.name: getattr(self, key.name) for key in fields(PPOConfig)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were given when the value came
            checked = PPOConfig(**known)
        for name in known:
            setattr(self, name, getattr(checked, name))

    def _fits(self) -> None:
        self.backward_batch_size = samples = self.mini_batch_size * self.gradient_accumulation_steps
        if self.batch_size % samples:
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of mini_batch_size * gradient_accumulation_steps = "
                f"{self.mini_batch_size} * {self.gradient_accumulation_steps} = {samples}"
            )
        if self.use_score_norm and not self.use_score_scaling:
            raise ValueError("use_score_norm = True does nothing without use_score_scaling = True: set both or none")
        if self.pad_for_acceleration and self.pad_max_input_len >= self.pad_max_len:
            raise ValueError(
                f"pad_max_input_len = {self.pad_max_input_len} must be below pad_max_len = {self.pad_max_len}"
            )
        if self.push_to_hub_if_best_kwargs and "repo_id" not in self.push_to_hub_if_best_kwargs:
            raise ValueError(
                "push_to_hub_if_best_kwargs must have a repo_id, it has: " + ", ".join(self.push_to_hub_if_best_kwargs)
            )

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, on one level: options as `tracker_kwargs/wandb/name`. For trackers."""
        return flat({key.name: getattr(self, key.name) for key in fields(self)})

    @classmethod
    def from_dict(cls, keys: dict[str, Any]) -> PPOConfig:
        """The configuration that `to_dict` or `dataclasses.asdict` was called of.

        Raises:
            ValueError: an unknown key or a wrong value.
        """
        given: dict[str, Any] = {}
        for name, value in keys.items():
            *above, last = name.split("/")
            place = given
            for part in above:
                place = place.setdefault(part, {})
            place[last] = value
        return cls(**given)


def flat(nested: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Dictionaries within dictionaries -> one, names joined by "/".

    Raises:
        ValueError: a name has a "/" of its own.
    """
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if "/" in name:
            raise ValueError(f"the name {name!r} has a '/', which joins names here: rename it")
        found |= flat(value, f"{above}{name}/") if isinstance(value, dict) else {f"{above}{name}": value}
    return found
