"""The orchestration: configuration, stages, and one rank's training loop."""

from typing import TYPE_CHECKING, Any

from pipeline.run import run

if TYPE_CHECKING:
    from pipeline.config import Config

__all__ = ["Config", "run"]


def __getattr__(name: str) -> Any:
    """Import `Config` when it is first asked for: a process of the cluster does without it."""
    if name != "Config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.config import Config

    return Config
