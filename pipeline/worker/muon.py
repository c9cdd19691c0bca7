"""An optimizer of DeepSpeed's that no run uses, and that DeepSpeed imports nevertheless."""

from __future__ import annotations

import os
from contextlib import suppress

NO_COMPILER = "TORCHDYNAMO_DISABLE"


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
