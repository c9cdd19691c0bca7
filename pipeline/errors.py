"""Two kinds of failure: errors in the user's input (exit status 2), and failed runs (exit status 1)."""

from dpo.errors import InputError, first_line, last_line, visible

__all__ = [
    "ConfigError",
    "Diverged",
    "InputError",
    "RunError",
    "Stopped",
    "Unreachable",
    "first_line",
    "last_line",
    "visible",
]


class ConfigError(InputError):
    """A configuration that cannot be used."""


class Diverged(InputError):
    """Numbers of training that are not finite. Settings or rows are to be mended, but the run failed: exit status 1."""


class Unreachable(InputError):
    """A service that does not answer. Settings need no mending, and the same command may do: exit status 1."""


class Stopped(InputError):
    """The workers were asked to stop, and have saved a checkpoint."""


class RunError(RuntimeError):
    """A stage failed for a reason outside configuration and data, such as a full disk or a damaged file."""

    logs: str | None = None  # the folder of Ray's logs, while Ray ran
