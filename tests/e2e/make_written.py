"""A small quickstart, and the golden file of what it writes: `python -m tests.e2e.make_written [--add]`.

Without --add the file is made anew, for this machine alone; with it, the floats of this machine are put beside those of
others, if all else is as it was. Run it on a tree whose results are right: it says what right is.
"""

from __future__ import annotations

import json
import platform
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.e2e.running import ROOT, ray_align
from tests.e2e.written import Written, summaries, written

GOLDEN = Path(__file__).parent / "fixtures" / "written.json"
LIBRARIES = ("tokenizers", "transformers", "deepspeed", "x-transformers")  # whose versions show in what is written
SMALL = (
    "sft.epochs=1",
    "evaluate.every_steps=3",
    "evaluate.generate_prompts=4",
    "evaluate.max_new_tokens=8",
    # Divides the sequences of both token parts: a batch of scoring is then of one part, whichever part Ray reads first,
    # and sums of a batch round alike in every run.
    "reference.batch_sequences=80",
)
TRAIN, EVAL = 160, 40  # pairs whose sequences differ
BROKEN = ("{", '{"prompt": "p"}', '{"prompt": "p", "chosen": "same", "rejected": "same"}', "[1]", '{"chosen": 1}')


def run_small(folder: Path) -> tuple[Path, Path]:
    """Run the quickstart on few pairs; its run and its workspace.

    Among them are rows that cannot be used, one pair twice, one the other way round, and one that is too long.
    """
    train, held_out = runpy.run_path(str(ROOT / "examples" / "make_data.py"))["make"](0)
    train, held_out = train[:TRAIN], held_out[:EVAL]
    train[7] |= {"chosen": train[7]["chosen"] + " Look there." * 12}
    again = [train[3], {**train[5], "chosen": train[5]["rejected"], "rejected": train[5]["chosen"]}]
    lines = [json.dumps(pair) for pair in train + again]
    (folder / "data").mkdir()
    _write_lines(folder / "data" / "train.jsonl", [*lines[:50], *BROKEN, *lines[50:]])
    _write_lines(folder / "data" / "eval.jsonl", map(json.dumps, held_out))
    shutil.copy(ROOT / "examples" / "quickstart.toml", folder)
    done = ray_align("run", str(folder / "quickstart.toml"), *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "quickstart", folder / "workspace"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def machine() -> str:
    """What decides how floats round: torch and the libraries around it, and the kind of CPU.

    The number of threads is none of it: workers and actors of the small quickstart compute with one thread each.
    """
    cpu, about = platform.processor(), Path("/proc/cpuinfo")
    if about.exists():  # the same instructions are not enough: math libraries also ask for the maker and the model
        lines = [line.split(":", 1) for line in about.read_text(encoding="utf-8").splitlines() if ":" in line]
        found = {key.strip(): value.strip() for key, value in reversed(lines)}
        cpu = " ".join(found.get(key, "?") for key in ("vendor_id", "cpu family", "model"))
    libraries = [f"{name} {version(name)}" for name in ("torch", *LIBRARIES)]
    return ", ".join([*libraries, torch.backends.cpu.get_cpu_capability(), cpu])


def golden_of(found: Written, run: Path, workspace: Path) -> dict[str, Any]:
    """What the golden file says of a run."""
    digests = found.digests()
    return {
        "libraries": library_versions(),
        "exact": digests["exact"],
        "library": digests["library"],
        "floats": {machine(): digests["floats"]},
        "summaries": summaries(run, workspace),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, workspace = run_small(Path(folder).resolve())
        golden = golden_of(written(run, workspace), run, workspace)
    if sys.argv[1:] == ["--add"]:
        before = json.loads(GOLDEN.read_text(encoding="utf-8"))
        if before["exact"] != golden["exact"]:
            raise SystemExit(f"what is exact differs from {GOLDEN}: make it anew, without --add, if that is right")
        golden = {**before, "floats": {**before["floats"], **golden["floats"]}}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"{GOLDEN}: {len(golden['exact'])} exact contents, floats of {len(golden['floats'])} kind(s) of machine")


if __name__ == "__main__":
    main()
