"""Every setting, and what is said of a wrong one."""

from pipeline.config.data import Data, Source, Tokenizer
from pipeline.config.policy import Adapter
from pipeline.config.sections import (
    Cluster,
    Config,
    DeepSpeed,
    Evaluate,
    Export,
    HuggingFacePolicy,
    Optimization,
    Reference,
    Report,
    Run,
    Sft,
    Train,
    XTransformersPolicy,
)

__all__ = [
    "Adapter",
    "Cluster",
    "Config",
    "Data",
    "DeepSpeed",
    "Evaluate",
    "Export",
    "HuggingFacePolicy",
    "Optimization",
    "Reference",
    "Report",
    "Run",
    "Sft",
    "Source",
    "Tokenizer",
    "Train",
    "XTransformersPolicy",
]
