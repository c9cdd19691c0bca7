"""Two kinds of failure: what the user can mend (exit 2), and a run that failed (exit 1)."""

from dpo.errors import InputError, first_line, last_line

__all__ = ["ConfigError", "InputError", "RunError", "first_line", "last_line"]


class ConfigError(InputError):
    """A configuration that cannot be used."""


class RunError(RuntimeError):
    """A stage failed, and nothing in the configuration or the data is to blame."""
