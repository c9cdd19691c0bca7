"""The mathematics of preference alignment. It knows neither the cluster nor the configuration."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo.dpo import DPO
    from dpo.lm.models import load_model
    from dpo.losses import LOSSES, PairLogps, dpo_loss

__all__ = ["DPO", "LOSSES", "PairLogps", "dpo_loss", "load_model"]

HOMES = {"DPO": "dpo.dpo", "load_model": "dpo.lm.models"}


def __getattr__(name: str) -> Any:
    """Load torch when something that needs it is asked for: `ray-align config` should answer at once."""
    if name not in __all__:
        raise AttributeError(f"module 'dpo' has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "dpo.losses")), name)
