"""The mathematics of preference alignment. Imports nothing of the pipeline; some messages name configuration keys."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo.dpo import (
        DPO,
        exists,
        freeze_all_layers_,
        log_prob_from_model_and_seq,
        masked_mean,
        maybe_and_mask,
    )
    from dpo.lm.models import load_model
    from dpo.losses import LOSSES, PairLogps, dpo_loss

__all__ = [
    "DPO",
    "LOSSES",
    "PairLogps",
    "dpo_loss",
    "exists",
    "freeze_all_layers_",
    "load_model",
    "log_prob_from_model_and_seq",
    "masked_mean",
    "maybe_and_mask",
]

HOMES = {
    "DPO": "dpo.dpo",
    "exists": "dpo.dpo",
    "freeze_all_layers_": "dpo.dpo",
    "load_model": "dpo.lm.models",
    "log_prob_from_model_and_seq": "dpo.dpo",
    "masked_mean": "dpo.dpo",
    "maybe_and_mask": "dpo.dpo",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because torch takes seconds to import and `ray-align config` must be fast."""
    if name not in __all__:
        raise AttributeError(f"module 'dpo' has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "dpo.losses")), name)
