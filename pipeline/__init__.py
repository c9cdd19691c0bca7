"""The orchestration: configuration, stages, and one rank's training loop."""

from pipeline.config import Config
from pipeline.run import run

__all__ = ["Config", "run"]
