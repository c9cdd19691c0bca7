"""The names of the files and folders in a run's folder."""

from __future__ import annotations

CONFIG = "config.json"
METRICS = "metrics.jsonl"
AUDIT = "audit.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
STAGES = "stages.json"  # what the stages of this name took so far, also in tries that were stopped
CURVES = "curves.png"
ANSWERS = "answers.jsonl"  # in EVALUATION
RAY_LOG = "ray.log"
STATUS = "status.txt"  # what the workers are doing, where that is not a step and takes long
NODES = "nodes.json"  # on a cluster, what its nodes with GPUs said of themselves

EPOCHS, WINDOWS = "epochs", "window-*.parquet"  # WINDOWS are in EPOCHS, in a folder per epoch
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
MODEL = "model"  # in an artifact of the stage sft
EVALUATION = "evaluation"
EXPORT = "export"
DOCTOR = "doctor"
