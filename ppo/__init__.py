"""PPO: value-head models, a frozen reference, KL controllers, the trainer. It knows nothing of Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo.config import PPOConfig
    from ppo.core import set_seed
    from ppo.estimators import groups_of, grpo_advantages, rloo_advantages
    from ppo.generation import LengthSampler
    from ppo.kl import AdaptiveKLController, FixedKLController
    from ppo.models import (
        AutoModelForCausalLMWithValueHead,
        AutoModelForSeq2SeqLMWithValueHead,
        CausalLMPolicy,
        PreTrainedModelWrapper,
        Seq2SeqLMPolicy,
        XTransformersPolicy,
        XTransformersWithValueHead,
        create_reference_model,
    )
    from ppo.statistics import get_global_statistics
    from ppo.trainer import PPOTrainer

_PLACES = {
    "AdaptiveKLController": "ppo.kl",
    "AutoModelForCausalLMWithValueHead": "ppo.models",
    "AutoModelForSeq2SeqLMWithValueHead": "ppo.models",
    "CausalLMPolicy": "ppo.models",
    "FixedKLController": "ppo.kl",
    "LengthSampler": "ppo.generation",
    "PPOConfig": "ppo.config",
    "PPOTrainer": "ppo.trainer",
    "PreTrainedModelWrapper": "ppo.models",
    "Seq2SeqLMPolicy": "ppo.models",
    "XTransformersPolicy": "ppo.models",
    "XTransformersWithValueHead": "ppo.models",
    "create_reference_model": "ppo.models",
    "groups_of": "ppo.estimators",
    "grpo_advantages": "ppo.estimators",
    "rloo_advantages": "ppo.estimators",
    "get_global_statistics": "ppo.statistics",
    "set_seed": "ppo.core",
}
__all__ = [
    "AdaptiveKLController",
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "CausalLMPolicy",
    "FixedKLController",
    "LengthSampler",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
    "Seq2SeqLMPolicy",
    "XTransformersPolicy",
    "XTransformersWithValueHead",
    "create_reference_model",
    "get_global_statistics",
    "groups_of",
    "grpo_advantages",
    "rloo_advantages",
    "set_seed",
]


def __getattr__(name: str) -> Any:
    """Load torch and transformers when something that needs them is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ppo' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
