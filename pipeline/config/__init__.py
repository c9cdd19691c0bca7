"""Every setting, and what is said of a wrong one."""

from pipeline.config.data import Data, Source, Tokenizer
from pipeline.config.sections import (
    Cluster,
    Config,
    DeepSpeed,
    Evaluate,
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
    "Cluster",
    "Config",
    "Data",
    "DeepSpeed",
    "Evaluate",
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
