"""The old home of `load_model`, in version 0.1. Use `dpo.load_model`; the next version removes this module."""

from dpo.lm.models import freeze, load_model

__all__ = ["freeze", "load_model"]
