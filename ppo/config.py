"""PPOConfig: TRL's names and defaults (0.11), checked."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from ppo.estimators import AdvantageEstimator, RewardScale
from ppo.kl import KLPenalty


class PPOConfig(BaseModel):
    """Every key with its default; an unknown key or a wrong value raises pydantic's ValidationError, a ValueError.

    Batch sizes count samples of one rank. What a key means stands in `PPOConfig.model_fields[NAME].description`.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    exp_name: str = "ppo"
    model_name: str | None = None
    seed: int = Field(0, description="Of sampling (plus the rank), and of the order of samples within a step.")
    steps: int = Field(20000, ge=1, description="Samples to train on in all; only total_ppo_epochs is made of it.")
    learning_rate: float = Field(1.41e-5, ge=0, description="Of the optimizer that is made when none is given.")

    adap_kl_ctrl: bool = Field(True, description="Move the KL coefficient so that the KL comes to `target`.")
    init_kl_coef: float = Field(0.2, ge=0, description="What a nat of KL costs, in units of the score, at first.")
    kl_penalty: KLPenalty = Field(
        "kl", description="kl: log-ratio; abs: its size; mse: half its square; full: KL over the vocabulary."
    )
    target: float = Field(6.0, gt=0, description="KL of a response, summed over its tokens, in nats.")
    horizon: float = Field(
        10000.0, gt=0, description="The larger, the slower the coefficient moves: 1/5 a horizon at most."
    )

    gamma: float = Field(1.0, ge=0, le=1, description="Discount a token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalized advantage estimation.")
    cliprange: float = Field(0.2, gt=0, description="How far the probability ratio may leave 1.")
    cliprange_value: float = Field(0.2, gt=0, description="How far a value may leave what it was before the step.")
    vf_coef: float = Field(0.1, ge=0, description="Weight of the value loss beside the policy loss.")

    advantage_estimator: AdvantageEstimator = Field(
        "gae",
        description="gae: from values; rloo, grpo: an answer's reward against those of the other answers to its query, "
        "without values, so that lam, vf_coef and cliprange_value do nothing.",
    )
    answers_per_prompt: int = Field(
        1, ge=1, description="Times that dataloader gives each query; rloo and grpo need at least 2 answers to each."
    )
    normalize_advantages: bool = Field(False, description="rloo: scale a batch's advantages to mean 0, deviation 1.")
    scale_rewards: RewardScale = Field(
        "group", description="grpo: divide by the deviation of a query's rewards, of the whole batch's, or not (none)."
    )

    batch_size: int = Field(128, ge=1, description="Samples a step takes.")
    mini_batch_size: int = Field(128, ge=1, description="Samples in one forward and backward pass.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Such passes in one update of the weights.")
    ppo_epochs: int = Field(4, ge=1, description="Times a step goes through its batch.")
    max_grad_norm: float | None = Field(None, gt=0, description="Clip the gradient of an update to this norm.")

    early_stopping: bool = Field(False, description="Leave out a step's further epochs once policykl is too high.")
    target_kl: float = Field(1.0, gt=0, description="Stop a step after the epoch whose policykl is 1.5 times this.")
    early_stopping_over: Literal["epoch", "last"] = Field(
        "epoch", description="policykl of all tokens of the epoch, or, as TRL has it, of the last mini-batch."
    )
    compare_steps: int = Field(
        1, ge=1, description="Steps between two comparisons of the mean score with the best so far."
    )
    push_to_hub_if_best_kwargs: dict[str, Any] = Field(
        {}, description="Push the model with these arguments (repo_id) whenever the mean score was never higher."
    )
    ratio_threshold: float = Field(10.0, gt=0, description="A mini-batch of a higher mean ratio changes nothing.")

    use_score_scaling: bool = Field(False, description="Divide scores by their running standard deviation.")
    use_score_norm: bool = Field(False, description="Subtract their running mean first; needs use_score_scaling.")
    score_clip: float | None = Field(None, gt=0, description="Then clip them to plus and minus this.")
    whiten_rewards: bool = Field(False, description="Scale rewards of tokens to variance 1 before advantages.")
    logit_temperature: float = Field(
        1.0, gt=0, description="Divide logits by this before log-probs: the temperature of sampling, to stay on-policy."
    )

    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass.")
    remove_unused_columns: bool = Field(True, description="Drop a data set's columns that nothing here reads.")
    pad_for_acceleration: bool = Field(False, description="Pad to fixed lengths, for hardware that compiles shapes.")
    pad_max_len: int = Field(512, ge=2, description="Length of query with response, if pad_for_acceleration.")
    pad_max_input_len: int = Field(128, ge=1, description="Length of a query, if pad_for_acceleration.")
    optimize_device_cache: bool = Field(False, description="Empty the device's cache after every step.")

    log_with: str | None = Field(
        None, description="A tracker of accelerate: wandb, tensorboard (needs project_kwargs), mlflow, ..."
    )
    tracker_project_name: str = "ppo"
    tracker_kwargs: dict[str, Any] = {}
    project_kwargs: dict[str, Any] = Field(
        {}, description="For accelerate's ProjectConfiguration, such as {'logging_dir': 'logs'}."
    )
    accelerator_kwargs: dict[str, Any] = Field({}, description="For accelerate's Accelerator.")

    world_size: int | None = Field(None, description="This and what follows is written by the trainer.")
    global_batch_size: int | None = None
    global_backward_batch_size: int | None = None
    is_encoder_decoder: bool | None = None
    is_peft_model: bool | None = None

    @property
    def backward_batch_size(self) -> int:
        """Samples in one update of the weights."""
        return self.mini_batch_size * self.gradient_accumulation_steps

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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.backward_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} must be a multiple of mini_batch_size * gradient_accumulation_steps = "
                f"{self.mini_batch_size} * {self.gradient_accumulation_steps} = {self.backward_batch_size}"
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
        return self
