"""The names of the files and folders in a run's folder."""

from __future__ import annotations

CONFIG = "config.json"
METRICS = "metrics.jsonl"
AUDIT = "audit.jsonl"
SAMPLES = "samples.jsonl"  # what the policy answered at evaluations in training, as token ids
UNREADABLE = "unreadable.txt"  # lines of logs that cannot be read any more
LEASE = "lease.json"  # who works on this run
INPUTS = "inputs.json"  # the contents that the run's name stands for
EARLIER = "earlier"  # what earlier runs of this name left, one folder each
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
STAGES = "stages.json"  # what the stages of this name took so far, also in tries that were stopped
CURVES = "curves.png"
REPORT = "report.html"
PAIRS = "pairs.jsonl"  # the held-out pairs as text, with how far training moved them
ANSWERS = "answers.jsonl"  # in EVALUATION
RAY_LOG = "ray.log"
STATUS = "status.txt"  # what the workers are doing, where that is not a step and takes long
TRACKERS = "trackers.json"  # the trackers' runs, and the last steps that they were sent
NODES = "nodes.json"  # on a cluster, what its nodes with GPUs said of themselves

EPOCHS, WINDOWS = "epochs", "window-*.parquet"  # WINDOWS are in EPOCHS, in a folder per epoch
CHECKPOINTS = "checkpoints"
ATTEMPTS = "attempts.jsonl"  # in CHECKPOINTS, a line for each attempt
WEIGHTS = "weights"
MODEL = "model"  # in an artifact of the stage sft
EVALUATION = "evaluation"
EXPORT = "export"
DOCTOR = "doctor"

SWEEP, SWEEP_PAGE = "sweep.json", "sweep.html"  # in a sweep's own folder, beside those of its runs
