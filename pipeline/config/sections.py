"""The configuration, one frozen section per topic. A TOML value replaces a default; section.field=value replaces both.

Each default is written on its field and nowhere else. The text under a field is its help, which `--keys` prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpo.terms import Mixture
from pipeline.config.data import Data, Tokenizer
from pipeline.config.deepspeed import usual_stage
from pipeline.config.load import load
from pipeline.config.losses import AnyLoss, SigmoidLoss
from pipeline.config.machine import Machine, actors_settings, workers_settings
from pipeline.config.policy import HuggingFacePolicy, XTransformersPolicy
from pipeline.config.section import NAME, Section

TRIAL_PAIRS = 32  # that `ray-align run my.toml --trial` trains on


class Run(Section):
    """The run's name, its folders and its seed."""

    name: str = Field(default="run", pattern=NAME)
    """Name of the run and of its folder, `dir/name`. Using a name again continues that run where it stopped."""
    dir: str = "runs"
    """Folder that holds the runs' folders. On a cluster, every node must see it."""
    workspace: str = "workspace"
    """Folder for tokens, warmed-up policies and reference log-probs, shared by runs. On a cluster, every node must see
    it."""
    seed: int = Field(default=0, ge=0)
    """Seeds the order of rows and the weights of random models."""
    trial: int | None = Field(default=None, ge=2)
    """For a first try: train on so many pairs alone, the first of each file, and hold out at most as many. Unset: all
    pairs."""
    audit: bool = False
    """Write the row ids of every optimizer step to `audit.jsonl`."""


class Optimization(Section):
    """Keys that supervised and preference training share."""

    epochs: int = Field(default=1, ge=0)
    """Passes over the data."""
    batch_pairs: int = Field(default=32, ge=1)
    """Pairs per optimizer step, over all workers."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Token budget of one micro-batch, padding included; a shared prompt counts once. A pair above the budget runs
    alone."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW, reached at the end of the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of the learning rate after the warm-up: constant, or a fall to 0 at the end of training."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the optimizer steps (0 to 1) over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW; it is multiplied by the learning rate."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay rate of the mean gradient, per step."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay rate of the mean squared gradient, per step."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Constant that AdamW adds to its denominator."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global norm of the gradients; larger gradients are scaled down to it. 0 turns clipping off."""


class Sft(Optimization):
    """Supervised training before DPO; the policy after it is the reference. Off while epochs = 0."""

    epochs: int = Field(default=0, ge=0)
    """Passes over the data; 0 skips this stage."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW, reached at the end of the warm-up."""
    completions: Literal["chosen", "both"] = "chosen"
    """Which completions are imitated."""


class Reference(Section):
    """The reference's log-probs: of which model, how they are computed, and where they are stored."""

    model: str = "start"
    """Which model the reference is. start: the policy as training begins. base: the model of [policy] without its
    adapter, and before [sft]. Otherwise a folder or a Hub name: of a model, or of an adapter on the policy's base."""
    mode: Literal["precompute", "overlap"] = "precompute"
    """precompute: score all pairs before training. overlap: score the next steps during training, on a cluster with
    room for both."""
    by: Literal["pool", "trainers"] = "pool"
    """pool: actors score, each with a whole copy of the reference. trainers: the workers of [cluster] score before
    training, with the reference sharded as [deepspeed] says: for models that no single GPU holds. Same values."""
    overlap_steps: int = Field(default=100, ge=1)
    """In overlap mode: number of optimizer steps scored together."""
    cache: str | None = None
    """Folder or URI (such as s3://bucket/cache) that stores the log-probs. Unset: `run.workspace`/cache."""
    actors: int = Field(default=1, ge=1)
    """Actors that score at the same time, each with a copy of the reference. Left out where there are GPUs: one per
    GPU."""
    cpus_per_actor: int = Field(default=1, ge=1)
    """CPU cores per actor. Left out where there are GPUs: the cores per GPU of a node, less one; without GPUs, on this
    machine alone: its cores, shared out among the actors."""
    gpus_per_actor: int = Field(default=0, ge=0)
    """GPUs per actor, all on one node. Over more than one, the layers of a Hugging Face model are spread. Left out
    where there are GPUs: 1."""
    resources: dict[str, float] = Field(default={})
    """Custom Ray resources per actor, for example { scorer = 1 }. Actors run only on nodes that have them."""
    labels: dict[str, str] = Field(default={})
    """Labels of the nodes that actors may run on, for example { "ray.io/accelerator-type" = "L4" }."""
    batch_sequences: int = Field(default=512, ge=1)
    """Sequences that an actor gets at once. It writes them as one part of the cache."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Token budget of one forward pass of an actor, padding included; a shared prompt counts once."""
    guard_tolerance: float | None = Field(default=None, gt=0)
    """Step-0 guard: largest allowed mean difference between policy and reference, in nats per token. Unset: 1e-5 in
    float32, 0.005 in bfloat16, and above it twice what other batches change here."""

    @model_validator(mode="after")
    def _some_model(self) -> Reference:
        if self.model.lower() in ("", "none", "null"):
            raise ValueError(
                f"reference.model = {self.model!r} is no model; leave it out. A loss that looks at no reference "
                "(simpo, cpo, orpo) scores nothing"
            )
        return self

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Reference:
        if self.by == "trainers" and self.mode == "overlap":
            raise ValueError(
                'reference.by = "trainers" scores before training and reference.mode = "overlap" during it; set '
                'reference.mode = "precompute", or reference.by = "pool"'
            )
        return self


class Train(Optimization):
    """Preference training: batches, optimizer, precision, checkpoints."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the data."""
    share_prompts: bool = True
    """Compute a prompt once for both of its completions, in scoring and in training. Same numbers, less work."""
    activation_checkpointing: bool = False
    """Compute activations a second time in the backward pass: less memory, about 25 % more time."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the weights in the forward pass, for policy and reference. Gradients are summed in float32. auto:
    bfloat16 where workers have GPUs, else float32."""
    deterministic: bool = False
    """On GPUs: sum gradients in a fixed order, so that two runs are equal bit for bit. Slower; CPUs always do."""
    checkpoint_minutes: float = Field(default=15.0, gt=0)
    """Minutes between checkpoints. One is also written after the last step."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between further checkpoints. Unset: none."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints to keep; older ones are removed."""
    max_failures: int = Field(default=3, ge=0)
    """Times that lost workers are replaced; training then continues from the last checkpoint."""


class DeepSpeed(Section):
    """DeepSpeed ZeRO: which training states are sharded over the workers, and which are moved to CPU memory."""

    stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """ZeRO stage: 0 shards nothing, 1 optimizer states, 2 also gradients, 3 also weights. auto: on one GPU 1; on more
    the lowest from 1 on that fits their memory, with the keys below; 3 with offload_param; 2 without GPUs and for a
    model of unknown size. A run keeps what it began with."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """cpu: keep the optimizer states in CPU memory. Needs stage 1 to 3."""
    offload_param: Literal["none", "cpu"] = "none"
    """cpu: keep the weights in CPU memory. Needs stage 3."""
    overlap_comm: bool | None = None
    """Send gradients while the backward pass goes on. Unset: as DeepSpeed does, at stage 3 alone; true at a stage 2
    that auto chose."""
    reduce_bucket_size: int | None = Field(default=None, ge=1)
    """Gradients that are sent at a time, as a number of elements. Unset: DeepSpeed's 500,000,000; 100,000,000 at a
    stage 2 that auto chose."""
    stage3_prefetch_bucket_size: int | None = Field(default=None, ge=0)
    """At stage 3: weights that are gathered ahead, as a number of elements. Unset: DeepSpeed's 50,000,000; by the free
    memory, up to one layer, at a stage 3 that auto chose."""
    stage3_max_live_parameters: int | None = Field(default=None, ge=0)
    """At stage 3: most gathered weights of a GPU at a time, as a number of elements. Unset: DeepSpeed's 1,000,000,000;
    by the free memory at a stage 3 that auto chose."""
    config: str | None = None
    """Path of a ds_config.json. Its "auto" values are filled in; the others must not contradict [train] or
    [deepspeed]."""

    @model_validator(mode="after")
    def _offload(self) -> DeepSpeed:
        if self.offload_param != "none" and self.stage not in ("auto", 3):
            raise ValueError(
                f"deepspeed.offload_param = {self.offload_param!r} needs deepspeed.stage = 3, it is {self.stage}; "
                'set that, or deepspeed.offload_param = "none"'
            )
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError(
                f"deepspeed.offload_optimizer = {self.offload_optimizer!r} needs deepspeed.stage = 1 to 3, it is 0; "
                'set one, or deepspeed.offload_optimizer = "none"'
            )
        return self


class Cluster(Section):
    """The Ray cluster, and the workers that train on it."""

    address: str | None = None
    """Address of the Ray cluster to join, or "auto". Unset: RAY_ADDRESS (the cluster of the Ray job), or a new local
    Ray."""
    workers: int | list[int] = 1
    """Number of training processes, each on its own GPU if it uses one. [least, most]: as many as the cluster has room
    for. Left out where there are GPUs: one per GPU."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores per worker. Left out where there are GPUs: the cores per GPU of a node, less one; without GPUs, on this
    machine alone: its cores, shared out among the workers."""
    gpus_per_worker: Literal[0, 1] = 0
    """GPUs per worker. Left out where there are GPUs: 1."""
    resources: dict[str, float] = Field(default={})
    """Custom Ray resources per worker, for example { trainer = 1 }. Workers run only on nodes that have them."""
    labels: dict[str, str] = Field(default={})
    """Labels of the nodes that workers may run on, for example { "ray.io/accelerator-type" = "A100" }."""
    start_minutes: float | None = Field(default=None, gt=0)
    """Minutes that a stage waits for its nodes, on a cluster that the run joins. Set it where you add nodes by hand.
    Unset: 20 where an autoscaler starts nodes, else 4, and what the cluster cannot hold is refused."""

    @model_validator(mode="after")
    def _range(self) -> Cluster:
        given = self.workers if isinstance(self.workers, list) else [self.workers, self.workers]
        if len(given) == 2 and 1 <= given[1] < given[0]:
            raise ValueError(
                f"cluster.workers = {self.workers!r}: the first is the least number of workers, and it is above the "
                f"second, the most; write [{given[1]}, {given[0]}]"
            )
        if len(given) != 2 or given[0] < 1:
            raise ValueError(f"cluster.workers = {self.workers!r}: give a number from 1, or [least, most]")
        return self

    @property
    def least_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, list) else self.workers

    @property
    def most_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, list) else self.workers


class Evaluate(Section):
    """Evaluation on held-out pairs, and which weights are exported."""

    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations during training. Unset: evaluate only after training."""
    best_by: Literal["loss", "accuracy"] | None = None
    """"loss" or "accuracy": export the weights of the evaluation with the lowest loss, or the highest accuracy. Unset:
    export the last weights."""
    generate_prompts: int = Field(default=0, ge=0)
    """Number of held-out prompts to answer greedily, before and after DPO. With evaluate.every_steps the workers also
    answer them at every evaluation, which takes longer by that; the report shows all side by side."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum number of new tokens in one answer."""


class Report(Section):
    """Output of a run: TensorBoard files, trackers, answers, Ray's messages."""

    tensorboard: bool = True
    """Also write the metrics as TensorBoard files."""
    trackers: list[Literal["wandb", "mlflow", "trackio", "tensorboard"]] = Field(default=[])
    """Experiment trackers to send metrics to, by their own clients and variables, such as WANDB_MODE=offline. A tracker
    that fails stops nothing."""
    show_answers: int = Field(default=3, ge=0)
    """Number of held-out prompts whose answers are printed at the end."""
    ray_logs: bool = False
    """Show Ray's own messages on the terminal."""


class Export(Section):
    """The exported folder of a policy with an adapter."""

    merge: bool = False
    """Export a whole model with the adapter merged into its base, in place of the adapter's folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of a merged model's weights. auto: that of the base's files, float32 with policy.quantize. A type that
    would lose more than a tenth of the adapter is refused."""


Policy = Annotated[HuggingFacePolicy | XTransformersPolicy, Field(discriminator="kind")]


class Config(Section):
    run: Run = Run()
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    policy: Policy
    """The model to train. Its weights before preference training are the reference."""
    sft: Sft = Sft()
    reference: Reference = Reference()
    loss: AnyLoss = SigmoidLoss()
    """The loss that training minimizes. Several [[loss]] tables are summed."""
    train: Train = Train()
    deepspeed: DeepSpeed = DeepSpeed()
    cluster: Cluster = Cluster()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    report: Report = Report()

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.train.dtype == "bfloat16" and self.deepspeed.stage == 0:
            raise ValueError(
                "deepspeed.stage = 0 cannot keep float32 gradients of a bfloat16 model; set deepspeed.stage = 1, "
                'or train.dtype = "float32"'
            )
        if self.reference.gpus_per_actor > 1 and isinstance(self.policy, XTransformersPolicy):
            raise ValueError(
                f"reference.gpus_per_actor = {self.reference.gpus_per_actor} spreads the layers of Hugging Face "
                'policies only; set it to 1 with x-transformers, or set reference.by = "trainers"'
            )
        if self.train.activation_checkpointing and isinstance(self.policy, XTransformersPolicy):
            raise ValueError(
                "train.activation_checkpointing = true works with Hugging Face policies only; to save memory with "
                "x-transformers, lower train.micro_batch_tokens"
            )
        if self.evaluate.best_by is not None and (self.evaluate.every_steps is None or self.data.eval is None):
            missing = "data.eval" if self.data.eval is None else "evaluate.every_steps"
            raise ValueError(f'evaluate.best_by = "{self.evaluate.best_by}" compares evaluations; set {missing} too')
        adapted = isinstance(self.policy, HuggingFacePolicy) and self.policy.adapter is not None
        if self.export.merge and not adapted:
            raise ValueError(
                "export.merge = true merges an adapter into its base; add [policy.adapter], or leave it out"
            )
        if isinstance(self.policy, HuggingFacePolicy) and self.policy.quantize != "none" and self.deepspeed.stage == 3:
            raise ValueError(
                "deepspeed.stage = 3 does not shard a quantized base safely; set deepspeed.stage = 2 (each GPU then "
                'holds the whole frozen base), or policy.quantize = "none"'
            )
        if self.train.batch_pairs < self.cluster.most_workers:
            raise ValueError(
                f"train.batch_pairs = {self.train.batch_pairs} leaves some of the {self.cluster.most_workers} workers "
                "of [cluster] without a pair; raise one or lower the other"
            )
        return self

    def settled(self, workers: Machine, actors: Machine) -> Config:
        """Fill in what follows from the GPUs that workers and actors may use; settings that were given stay.

        deepspeed.stage = "auto" becomes what it is where no memory is known.
        """
        overlap = self.reference.mode == "overlap"
        beside = (self.cluster.most_workers, self.reference.actors) if overlap else (0, 0)
        scoring = actors_settings(self.reference, actors, overlap, beside[0])
        spared = 1 if overlap and scoring.get("gpus_per_actor", 0) else 0
        training = workers_settings(self.cluster, workers, self.train.batch_pairs, spared, beside[1])
        cluster = self.cluster.model_copy(update=training)
        stage = usual_stage(self.deepspeed, cluster.gpus_per_worker == cluster.most_workers == 1)
        precise = not cluster.gpus_per_worker or stage == 0
        dtype = {"dtype": "float32" if precise else "bfloat16"} if self.train.dtype == "auto" else {}
        changed = {
            "cluster": cluster,
            "deepspeed": self.deepspeed.model_copy(update={"stage": stage}),
            "reference": self.reference.model_copy(update=scoring),
            "train": self.train.model_copy(update=dtype),
        }
        return self.model_copy(update=changed)

    def as_trial(self) -> Config:
        """The same run on TRIAL_PAIRS pairs, or on run.trial where that is set, under a name of its own."""
        changes = {"trial": self.run.trial or TRIAL_PAIRS, "name": f"{self.run.name}-trial"}
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})

    @property
    def asks_pool(self) -> bool:
        """Whether a run needs the actors of [reference]: to score, or to answer, which no trainer does."""
        answers = self.evaluate.generate_prompts > 0 and self.data.eval is not None
        return self.reference.by == "pool" or answers

    def asks(self, until: str) -> tuple[bool, bool]:
        """Whether the stages of a run up to `until` need the actors of [reference], and the workers of [cluster]."""
        prepares, before_training = until == "prepare", until in ("prepare", "sft", "score", "order")
        by_trainers = self.reference.by == "trainers" and until != "sft"
        trains = not before_training or (not prepares and (self.sft.epochs > 0 or by_trainers))
        return self.asks_pool and until not in ("prepare", "sft"), trains

    @property
    def mixture(self) -> Mixture:
        """The loss as plain values, which `dpo` takes."""
        return self.loss.terms()

    @classmethod
    def load(cls, path: str, overrides: Sequence[str] | Mapping[str, Any] | None = None) -> Config:
        """Read a TOML or YAML file and apply overrides: `section.field=value` words, or {"section.field": value}.

        Raises:
            ConfigError: a value cannot be used. The message names the key, its value and the fix.
        """
        return load(cls, path, overrides or [])
