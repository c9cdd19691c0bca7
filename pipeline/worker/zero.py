"""DeepSpeed, without what it imports beside itself and no run uses: that takes seconds in every process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a package seem not to be installed, unless it is loaded already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # which importing it takes for its absence
    try:
        yield
    finally:
        del sys.modules[name]


with _absent("mlflow"):  # the autotuner imports it where it is installed
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

__all__ = [
    "DeepSpeedZeroOptimizer",
    "LinearFunctionForZeroStage3",
    "TorchCheckpointEngine",
    "compile_nothing",
    "deepspeed",
    "import_muon",
]
NO_COMPILER = "TORCHDYNAMO_DISABLE"


def compile_nothing() -> None:
    """Let DeepSpeed compile no C++ op at start-up: on a CPU only its inference all-reduce would use it."""
    deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]


def import_muon() -> None:
    """Import an optimizer of DeepSpeed's that no run uses, without the compiler of torch.

    `deepspeed.initialize` imports it to compare ours with it, and its file would load the compiler: a second.
    """
    before = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    with suppress(ImportError):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    if before is None:
        del os.environ[NO_COMPILER]
    else:
        os.environ[NO_COMPILER] = before
