"""The names of what a run's folder holds."""

from __future__ import annotations

CONFIG = "config.json"
METRICS = "metrics.jsonl"
AUDIT = "audit.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
CURVES = "curves.png"
ANSWERS = "answers.jsonl"  # below EVALUATION
RAY_LOG = "ray.log"

EPOCHS, WINDOWS = "epochs", "window-*.parquet"  # below EPOCHS, in a folder for each epoch
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
MODEL = "model"  # of an sft artifact
EVALUATION = "evaluation"
EXPORT = "export"
DOCTOR = "doctor"
