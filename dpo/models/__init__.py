"""The place of `load_model` in version 0.1; it is `dpo.load_model` now, and this name goes with the next version."""

from dpo.lm.models import freeze, load_model

__all__ = ["freeze", "load_model"]
