"""A run that was killed in the middle of training, as a fixture: `python -m tests.e2e.make_begun_run`.

The archive holds what a user has on disk then, and beside it what the run ends with when nothing stops it. Files that
name their folder by its absolute path (`PLACED`) say `HERE` instead; `extract` puts the new folder in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.e2e.running import ROOT, ray_align, rows

ARCHIVE = Path(__file__).parent / "fixtures" / "begun-run.tar.xz"
CONFIG = """
[run]
name = "begun"
audit = true
[data]
train = "pairs.jsonl"
eval = 0.2
max_length = 64
[tokenizer]
path = "bytes"
[policy]
kind = "huggingface"
[policy.config]
model_type = "llama"
vocab_size = 258
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 64
tie_word_embeddings = true
[reference]
actors = 1
[train]
epochs = 8
batch_pairs = 8
micro_batch_tokens = 512
learning_rate = 1e-2
adam_epsilon = 1e-4          # above gradients that are all rounding, which would move a weight as far as any other
checkpoint_steps = 18        # in the middle of an epoch
keep_checkpoints = 1
[deepspeed]
stage = 2
[cluster]
workers = 1
[evaluate]
every_steps = 10
generate_prompts = 0
[report]
tensorboard = false
"""
PAIRS = 48
RUN = Path("runs") / "begun"
HERE = "@HERE@"
PLACED = (RUN / "config.json", Path("workspace") / "digests.json")
LEFT_OUT = (RUN / "ray", RUN / "ray.log")  # Ray's own records of processes that are gone
EXPECTED, MADE_WITH = "expected.safetensors", "made_with.json"
LIBRARIES = ("tokenizers", "deepspeed")  # the first is part of the tokens' fingerprint, the second writes checkpoints
KILL_AFTER, NEXT_CHECKPOINT = 20, 36  # steps: some are done and not saved
LIMIT = 300  # seconds until something that is waited for must have happened


def extract(archive: Path, folder: Path) -> None:
    """Put the run into a folder, as if it had been begun there."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    for name in PLACED:
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(HERE, str(folder)), encoding="utf-8")


def versions() -> dict[str, str]:
    """Those that must be as when the fixture was made."""
    return {name: version(name) for name in LIBRARIES}


def main() -> None:
    with tempfile.TemporaryDirectory() as begun, tempfile.TemporaryDirectory() as whole:
        begin(_fresh(Path(begun).resolve()))
        done = ray_align("run", str(_fresh(Path(whole).resolve()) / "run.toml"))
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.copy(Path(whole) / RUN / "weights" / "model.safetensors", Path(begun) / EXPECTED)
        (Path(begun) / MADE_WITH).write_text(json.dumps(versions()) + "\n", encoding="utf-8")
        pack(Path(begun).resolve())
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes, made with {versions()}")


def _fresh(folder: Path) -> Path:
    pairs = [{"prompt": f"say word {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}."} for i in range(PAIRS)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    (folder / "run.toml").write_text(CONFIG, encoding="utf-8")
    return folder


def begin(folder: Path) -> None:
    """Run until some steps after a checkpoint, and kill the run with all that it has started."""
    run = folder / RUN
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(folder / "run.toml")],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        _wait_for(lambda: process.poll() is not None or _last_step(run) >= KILL_AFTER)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for(lambda: not _of_session(process.pid))  # what Ray has started sees that its parent is gone
    if process.returncode != -signal.SIGKILL or _last_step(run) >= NEXT_CHECKPOINT:
        said = (folder / "out.txt").read_text(encoding="utf-8")
        raise SystemExit(f"the run was not caught between two checkpoints; try again: {said}")
    (folder / "out.txt").unlink()


def _last_step(run: Path) -> int:
    log = run / "metrics.jsonl"
    return max((row["step"] for row in rows(log)), default=0) if log.exists() else 0


def _of_session(leader: int) -> list[int]:
    """Processes that a session's leader has started and that still run."""
    found = []
    for number in psutil.pids():
        try:
            if os.getsid(number) == leader and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                found.append(number)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def _wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {LIMIT} seconds in vain")
        time.sleep(0.01)


def pack(folder: Path) -> None:
    """Write the archive of a folder, with `HERE` where files named it.

    Raises:
        SystemExit: a file outside `PLACED` names the folder, and would be wrong in another.
    """
    for name in LEFT_OUT:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    for name in PLACED:
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(str(folder), HERE), encoding="utf-8")
    files = sorted(folder.rglob("*"))
    named = [str(f.relative_to(folder)) for f in files if f.is_file() and str(folder).encode() in f.read_bytes()]
    if named:
        raise SystemExit(f"these files name the folder that they were made in: {', '.join(named)}; add them to PLACED")
    ARCHIVE.parent.mkdir(exist_ok=True)
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as tar:
        for path in files:
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=_nobodys)


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
