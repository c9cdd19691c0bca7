"""This machine and what is installed -> the lines that a bug report needs. No secret is among them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "ray-align",
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "tokenizers",
    "x-transformers",
    "peft",
    "datasets",
    "accelerate",
    "pydantic",
    "pyarrow",
    "numpy",
    "rich",
    "wandb",
    "mlflow-skinny",
    "trackio",
    "trl",
)
# Whose values say nothing of anybody; of all others it is said only that they are set.
SHOWN = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTHONPATH", "RAY_TMPDIR", "WANDB_MODE")
TOLD = ("RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "HF_TOKEN", "NCCL_DEBUG")


def environment() -> str:
    """Return one line for each thing."""
    found = {"ray-align": _version("ray-align") + _commit(), "python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES[1:]}
    found |= {"system": platform.platform(), "CPUs": str(os.cpu_count()), "memory": _memory(), "GPUs": _gpus()}
    found |= {name: os.environ[name] for name in SHOWN if name in os.environ}
    found |= {name: "(set)" for name in TOLD if name in os.environ}
    return "\n".join(f"{name:<22}{text}" for name, text in found.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout that this file is in, if it is in one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / 2**30:.1f} GiB"


def _gpus() -> str:
    """The GPUs as torch sees them, asked in a process of its own: a driver that does not answer ends that one alone."""
    names = "map(torch.cuda.get_device_name, range(torch.cuda.device_count()))"
    asked = f"import torch; print(torch.version.cuda, *{names}, sep='\\n')"
    try:
        done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "torch did not answer within 60 s"
    if done.returncode:
        return "torch cannot be imported"
    cuda, *names = done.stdout.split("\n")[:-1]
    return f"{', '.join(names) or 'none'} (torch is built for {'CUDA ' + cuda if cuda != 'None' else 'CPUs'})"
