"""The mathematics of preference alignment. Imports nothing of the pipeline; some messages name configuration keys."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo.dpo import DPO
    from dpo.lm.models import load_model
    from dpo.losses import LOSSES, PairLogps, dpo_loss

__all__ = ["DPO", "LOSSES", "PairLogps", "dpo_loss", "load_model"]

HOMES = {"DPO": "dpo.dpo", "load_model": "dpo.lm.models"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because torch takes seconds to import and `ray-align config` must be fast."""
    if name not in __all__:
        raise AttributeError(f"module 'dpo' has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "dpo.losses")), name)
