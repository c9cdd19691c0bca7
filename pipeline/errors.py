"""Two kinds of failure: what the user can mend (exit 2), and a run that failed (exit 1)."""

from dpo.errors import InputError

__all__ = ["ConfigError", "InputError", "RunError"]


class ConfigError(InputError):
    """A configuration that cannot be used."""


class RunError(RuntimeError):
    """A stage failed for a reason that no change of input explains."""
