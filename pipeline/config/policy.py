"""The policy: which model is trained, whole or through an adapter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dpo.lm.adapter_files import changes_base
from pipeline.config.section import Section


class Adapter(Section):
    """A LoRA adapter: the only weights that are trained, beside those of modules_to_save."""

    path: str | None = None
    """A trained adapter to go on with: a folder as peft writes it, or a Hub name. It then sets the keys below, except
    lora_plus_ratio."""
    r: int = Field(default=16, ge=1)
    """Rank: columns of the two matrices of a pair."""
    alpha: float = Field(default=32.0, gt=0)
    """The pair's product is multiplied by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get a pair: "all-linear" for all linear layers but the head, names such as ["q_proj", "v_proj"], or
    a regular expression of whole names."""
    target_parameters: list[str] = Field(default=[])
    """Parameters of fused experts that get a pair, such as ["mlp.experts.gate_up_proj"]."""
    modules_to_save: list[str] = Field(default=[])
    """Modules that are trained whole beside the pairs, such as ["lm_head"]."""
    use_dora: bool = False
    """DoRA: also train the norm of each row of an adapted matrix."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(r) in place of alpha / r."""
    init_lora_weights: bool | str = True
    """How a new pair is drawn: true, or "gaussian", so that the policy starts as its base; or "orthogonal"."""
    lora_plus_ratio: float = Field(default=1.0, gt=0)
    """LoRA+: learning rate of the second matrix of each pair, as a multiple of that of all others."""

    @field_validator("init_lora_weights")
    @classmethod
    def _plain_start(cls, value: bool | str) -> bool | str:
        if value is False:
            raise ValueError(
                "policy.adapter.init_lora_weights = false starts from another model than the base; use true"
            )
        if isinstance(value, str) and value not in ("gaussian", "orthogonal"):
            raise ValueError(changes_base(value, "policy.adapter."))
        return value

    @model_validator(mode="after")
    def _targets(self) -> Adapter:
        targets = self.target_modules
        if targets in ([], "") and not self.target_parameters:
            raise ValueError(
                f'policy.adapter.target_modules = {targets!r} names no module; write "all-linear", or names such as '
                '["q_proj", "v_proj"]'
            )
        if isinstance(targets, list) and "all-linear" in targets:
            raise ValueError('policy.adapter.target_modules = "all-linear" stands alone, without brackets')
        if isinstance(targets, str) and "," in targets:
            names = [name.strip() for name in targets.split(",")]
            raise ValueError(f"policy.adapter.target_modules = {targets!r} is one name; write a list, {names}")
        return self


class HuggingFacePolicy(Section):
    """A model of the transformers library."""

    kind: Literal["huggingface"]
    path: str | None = None
    """A folder with config.json and safetensors, or a Hub name."""
    config: dict[str, Any] | None = None
    """For trials, in place of `path`: the config (`model_type` and its fields) of a model with random weights."""
    adapter: Adapter | None = None
    """Train a LoRA adapter in place of all weights; the keys are those of [policy.adapter]."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Keep the frozen weights, of policy and reference alike, in 4 bits (nf4) or 8 bits (int8) by bitsandbytes. Needs
    [policy.adapter]."""

    @model_validator(mode="after")
    def _one_of(self) -> HuggingFacePolicy:
        if (self.path is None) == (self.config is None):
            both = "both are" if self.path is not None else "neither is"
            raise ValueError(f"[policy] takes either path or config, and {both} given; give one of them")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(f'policy.config = {self.config!r} needs a model_type, for example "llama"')
        if self.quantize != "none" and self.adapter is None:
            raise ValueError(
                f'policy.quantize = "{self.quantize}" keeps weights that cannot be trained; add [policy.adapter], or '
                'set policy.quantize = "none"'
            )
        if self.quantize != "none" and self.adapter is not None and self.adapter.use_dora:
            raise ValueError(
                f'policy.adapter.use_dora = true takes norms of whole weights, and policy.quantize = "{self.quantize}" '
                "has none; leave one of them out"
            )
        return self


class XTransformersPolicy(Section):
    """A decoder of the x-transformers library."""

    kind: Literal["x-transformers"]
    path: str | None = None
    """A folder that ray-align exported. It then sets all the keys below."""
    dim: int = Field(default=512, ge=8)
    """Width of the model, in channels."""
    depth: int = Field(default=6, ge=1)
    """Number of layers."""
    heads: int = Field(default=8, ge=1)
    """Attention heads per layer."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest sequence that the model has positions for, in tokens. Unset: `data.max_length`."""
    positions: Literal["rotary", "absolute"] = "rotary"
    """Position encoding."""
    decoder: dict[str, Any] = Field(default={})
    """Further arguments of x_transformers.Decoder, for example { ff_glu = true }."""
    wrapper: dict[str, Any] = Field(default={})
    """Further arguments of x_transformers.TransformerWrapper, for example { tie_embedding = true }."""
