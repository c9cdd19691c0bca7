"""The mathematics of preference alignment. It knows neither the cluster nor the configuration."""

from dpo.dpo import DPO
from dpo.losses import LOSSES, PairLogps, dpo_loss

__all__ = ["DPO", "LOSSES", "PairLogps", "dpo_loss"]
