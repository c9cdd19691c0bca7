"""The configuration: its sections, how a file is read, and the messages about wrong values."""

from pipeline.config.sections import (
    Cluster,
    Config,
    Data,
    DeepSpeed,
    Evaluate,
    HuggingFacePolicy,
    Optimization,
    Reference,
    Report,
    Run,
    Sft,
    Source,
    Tokenizer,
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
