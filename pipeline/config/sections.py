"""The configuration: one frozen section a stage. Order: default < TOML file < section.field=value.

A default lives on its field and nowhere else; the text under a field is its help.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpo.terms import Mixture
from pipeline.config.load import load
from pipeline.config.losses import AnyLoss, SigmoidLoss
from pipeline.config.section import Section


class Run(Section):
    """The run's name, its folders, its seed."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder, `dir/name`. The same name again goes on where it stopped."""
    dir: str = "runs"
    """Where run folders are kept; on a cluster a folder that every node sees."""
    workspace: str = "workspace"
    """Tokens, warmed-up policies and reference log-probs, shared by runs; on a cluster where every node sees it."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the rows and of random models."""
    audit: bool = False
    """Write the row ids of every optimizer step to `audit.jsonl`."""


class Source(Section):
    """One of several places that rows come from, where more is to be said of it than its path."""

    path: str
    weight: float = Field(default=1.0, gt=0, le=16)
    """How often its rows are seen an epoch: 2 twice, 0.25 a quarter of them, always the same ones."""
    split: str = "train"
    """Of a data set of the hub."""
    name: str | None = None
    """Of a data set of the hub that has several: which one."""
    columns: dict[str, str] | None = None
    """As `data.columns`, for these rows alone."""


COLUMNS = ("prompt", "chosen", "rejected", "system", "tools", "conversations", "completions", "scores")
COLUMNS += ("response_a", "response_b", "winner")


class Data(Section):
    """Preference pairs: where they come from, how long they may be, and which are left out."""

    train: str | Source | list[str | Source]
    """Preference pairs: files, folders, patterns (*.jsonl), s3:// or gs:// URIs, or names of data sets on the hub, or
    tables { path, weight, split, name, columns }. JSONL, JSON, CSV (also .gz, .zst), Parquet, Arrow."""
    eval: str | float | Source | None = None
    """Held-out pairs: such a source, or about this fraction of the prompts of `train`, by hash, none on both sides."""
    columns: dict[str, str] = Field(default={})
    """Where columns have other names: { prompt = "question", chosen = "answers.best" }."""
    max_length: int = Field(default=1024, ge=2)
    """Tokens of prompt and completion together."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Tokens of the prompt; a longer one loses its beginning under keep_end, else the pair is rejected."""
    max_completion_length: int | None = Field(default=None, ge=1)
    """Tokens of a completion; a longer one loses its end."""
    truncation: Literal["keep_start", "keep_end", "drop"] = "keep_start"
    """Longer pairs: cut the completion's end, cut the prompt's beginning (if that is enough), or drop the pair."""
    pairing: Literal["best_worst", "all"] = "best_worst"
    """Of a row with a list of scored answers: its best against its worst, or every answer against every worse one."""
    margin: float = Field(default=0.0, ge=0)
    """By how much more such an answer must be scored than the other."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Pairs that stand in the data again: train on each of them, or on the first."""
    contradictions: Literal["keep", "drop"] = "keep"
    """Pairs that also stand there with chosen and rejected exchanged: train on all of them, or on none."""
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)
    """Stop when a larger share of the rows cannot be used. Ties and what the two keys above drop do not count."""

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if isinstance(self.eval, float) and not 0 < self.eval < 1:
            raise ValueError(f"data.eval as a fraction must lie between 0 and 1, it is {self.eval}")
        sources = self.train if isinstance(self.train, list) else [self.train]
        if not sources:
            raise ValueError("data.train = []: name at least one file")
        if isinstance(self.eval, Source) and self.eval.weight != 1.0:
            raise ValueError(f"data.eval.weight = {self.eval.weight}: held-out rows count once; leave it out")
        for columns in (self.columns, *(s.columns or {} for s in (*sources, self.eval) if isinstance(s, Source))):
            for name in columns:
                if name not in COLUMNS:
                    raise ValueError(f"data.columns.{name}: a column must be one of {', '.join(COLUMNS)}")
        for key in ("max_prompt_length", "max_completion_length"):
            value = getattr(self, key)
            if value is not None and value >= self.max_length:
                raise ValueError(f"data.{key} = {value} never applies: data.max_length is {self.max_length}")
        return self


class Tokenizer(Section):
    """The tokenizer and its chat template."""

    path: str | None = None
    """A folder, a hub name, or "bytes". Left out: the policy's own, or "bytes" for x-transformers."""
    eos_token: str | None = None
    """The end token, where the tokenizer names none."""
    chat_template: str | None = None
    """"chatml" or the path of a Jinja file, in place of the tokenizer's own."""
    template_options: dict[str, Any] = Field(default={})
    """What the template may read, for example { date_string = "26 Jul 2024", enable_thinking = false }."""


class HuggingFacePolicy(Section):
    """A model of the transformers library."""

    kind: Literal["huggingface"]
    path: str | None = None
    """A folder with config.json and safetensors, or a hub name."""
    config: dict[str, Any] | None = None
    """In place of `path`: a random model of this config (`model_type` and its fields), for trials."""

    @model_validator(mode="after")
    def _one_of(self) -> HuggingFacePolicy:
        if (self.path is None) == (self.config is None):
            both = "both are" if self.path is not None else "neither is"
            raise ValueError(f"[policy] takes either path or config, and {both} given; give one of them")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(f'policy.config = {self.config!r} needs a model_type, for example "llama"')
        return self


class XTransformersPolicy(Section):
    """A decoder of the x-transformers library."""

    kind: Literal["x-transformers"]
    path: str | None = None
    """A folder that ray-align exported; the fields below then come from it."""
    dim: int = Field(default=512, ge=8)
    depth: int = Field(default=6, ge=1)
    heads: int = Field(default=8, ge=1)
    max_length: int | None = Field(default=None, ge=2)
    """Positions of the model; left out: `data.max_length`."""
    positions: Literal["rotary", "absolute"] = "rotary"
    decoder: dict[str, Any] = Field(default={})
    """Further keywords of x_transformers.Decoder, for example { ff_glu = true }."""
    wrapper: dict[str, Any] = Field(default={})
    """Further keywords of x_transformers.TransformerWrapper, for example { tie_embedding = true }."""


class Optimization(Section):
    """What supervised and preference training share."""

    epochs: int = Field(default=1, ge=0)
    """Times that every pair is seen."""
    batch_pairs: int = Field(default=32, ge=1)
    """Pairs in one optimizer step, over all workers."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens a worker computes at once, a shared prompt counted once and padding included; a longer pair runs alone."""
    learning_rate: float = Field(default=1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls after the warm-up, to 0 at the last step."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the global gradient norm; 0 does not clip."""


class Sft(Optimization):
    """Supervised training before DPO; the reference is the policy after it. Off while epochs = 0."""

    epochs: int = Field(default=0, ge=0)
    """Times that every pair is seen; 0 leaves the stage out."""
    learning_rate: float = Field(default=1e-5, gt=0)
    completions: Literal["chosen", "both"] = "chosen"
    """Which sides are imitated."""


class Reference(Section):
    """The reference's log-probs: how they are computed, and where they are kept."""

    mode: Literal["precompute", "overlap"] = "precompute"
    """overlap: score what comes next while training runs, on a cluster with room for both at the same time."""
    overlap_steps: int = Field(default=100, ge=1)
    """Optimizer steps that are scored and joined at once in overlap mode."""
    cache: str | None = None
    """Where log-probs are kept: a folder, or a URI such as s3://bucket/cache. Left out: `run.workspace`/cache."""
    actors: int = Field(default=1, ge=1)
    """Reference models that score at the same time."""
    cpus_per_actor: int = Field(default=1, ge=1)
    gpus_per_actor: int = Field(default=0, ge=0, le=1)
    resources: dict[str, float] = Field(default={})
    """Custom Ray resources of an actor, for example { scorer = 1 }, to place the pool on nodes that have them."""
    labels: dict[str, str] = Field(default={})
    """Labels of the nodes that actors may run on, for example { "ray.io/accelerator-type" = "L4" }."""
    batch_sequences: int = Field(default=512, ge=1)
    """Sequences an actor is handed at once, and writes as one part of the cache."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Tokens an actor computes at once, a shared prompt counted once and padding included."""
    guard_tolerance: float | None = Field(default=None, gt=0)
    """Largest mean |log-prob of policy - of reference| a token at step 0. Left out: 1e-5, and 0.05 in bfloat16."""


class Train(Optimization):
    """Preference training: batches, optimizer, precision, checkpoints."""

    epochs: int = Field(default=1, ge=1)
    """Times that every pair is seen."""
    share_prompts: bool = True
    """Compute a prompt once for its completions, in scoring and in training; the same numbers, faster."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a quarter more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in the forward pass, for policy and reference; sums and gradients are kept in float32."""
    checkpoint_minutes: float = Field(default=15.0, gt=0)
    """Save when so long has passed since the last time; also after the last step."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Also save each so many steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Older ones are removed."""
    max_failures: int = Field(default=3, ge=0)
    """Times that lost workers are replaced and training goes on from the last checkpoint."""


class DeepSpeed(Section):
    """DeepSpeed ZeRO: which states of training are spread over the workers, and which are moved to CPU memory."""

    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO: 1 shards optimizer states, 2 also gradients, 3 also weights."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    offload_param: Literal["none", "cpu"] = "none"
    """Stage 3 only."""
    config: str | None = None
    """A ds_config.json; its "auto" values are filled in, and it may not contradict [train]."""

    @model_validator(mode="after")
    def _offload(self) -> DeepSpeed:
        if self.offload_param != "none" and self.stage != 3:
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
    """A Ray cluster to join, or "auto". Left out: the cluster of the job, or a local Ray of our own."""
    workers: int | list[int] = 1
    """Training processes; with GPUs one a GPU. [least, most]: as many of them as the cluster has room for."""
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: Literal[0, 1] = 0
    resources: dict[str, float] = Field(default={})
    """Custom Ray resources of a worker, for example { trainer = 1 }, to place training on nodes that have them."""
    labels: dict[str, str] = Field(default={})
    """Labels of the nodes that workers may run on."""

    @model_validator(mode="after")
    def _range(self) -> Cluster:
        given = self.workers if isinstance(self.workers, list) else [self.workers, self.workers]
        if len(given) != 2 or not 1 <= given[0] <= given[1]:
            raise ValueError(f"cluster.workers = {self.workers!r}: give a number from 1, or [least, most]")
        return self

    @property
    def least_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, list) else self.workers

    @property
    def most_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, list) else self.workers


class Evaluate(Section):
    """Evaluation on held-out pairs, and the weights that are exported by it."""

    every_steps: int | None = Field(default=None, ge=1)
    """Also evaluate during training, each so many steps."""
    best_by: Literal["loss", "accuracy"] | None = None
    """Export the weights whose evaluation gave the lowest loss, or the highest accuracy, instead of the last ones."""
    generate_prompts: int = Field(default=0, ge=0)
    """Answer so many held-out prompts greedily, before and after DPO."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Of one answer."""


class Report(Section):
    """TensorBoard files, answers and messages that a run gives out."""

    tensorboard: bool = True
    """Also write TensorBoard files."""
    show_answers: int = Field(default=3, ge=0)
    """Answers to print at the end."""
    ray_logs: bool = False
    """Let Ray's own messages through."""


Policy = Annotated[HuggingFacePolicy | XTransformersPolicy, Field(discriminator="kind")]


class Config(Section):
    run: Run = Run()
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    policy: Policy
    """The model that is trained; its weights before preference training are the reference."""
    sft: Sft = Sft()
    reference: Reference = Reference()
    loss: AnyLoss = SigmoidLoss()
    """The loss that training minimizes; several [[loss]] tables are added up."""
    train: Train = Train()
    deepspeed: DeepSpeed = DeepSpeed()
    cluster: Cluster = Cluster()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.train.dtype == "bfloat16" and self.deepspeed.stage == 0:
            raise ValueError(
                "deepspeed.stage = 0 cannot keep float32 gradients of a bfloat16 model; set deepspeed.stage = 1, "
                'or train.dtype = "float32"'
            )
        if self.train.activation_checkpointing and isinstance(self.policy, XTransformersPolicy):
            raise ValueError(
                "train.activation_checkpointing = true is for Hugging Face policies, x-transformers has none; lower "
                "train.micro_batch_tokens to save memory"
            )
        if self.evaluate.best_by is not None and (self.evaluate.every_steps is None or self.data.eval is None):
            missing = "data.eval" if self.data.eval is None else "evaluate.every_steps"
            raise ValueError(f'evaluate.best_by = "{self.evaluate.best_by}" compares evaluations; set {missing} too')
        if self.train.batch_pairs < self.cluster.most_workers:
            raise ValueError(
                f"train.batch_pairs = {self.train.batch_pairs} leaves some of the {self.cluster.most_workers} workers "
                "of [cluster] without a pair; raise one or lower the other"
            )
        return self

    @property
    def mixture(self) -> Mixture:
        """The loss as the mathematics takes it."""
        return self.loss.terms()

    @classmethod
    def load(cls, path: str, overrides: list[str] | None = None) -> Config:
        """Read a TOML file and apply `section.field=value` overrides.

        Raises:
            ConfigError: names the key, its value and the fix.
        """
        return load(cls, path, overrides or [])
