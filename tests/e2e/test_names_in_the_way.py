"""A user's folder with a dpo.py and a pipeline/ of its own: neither the program nor Ray's processes import them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import ROOT, summary
from tests.e2e.test_misuse import CONFIG, GOOD

pytestmark = pytest.mark.ray
PROGRAM = "import sys\nfrom pipeline.cli import main\nsys.exit(main())\n"  # as pip installs it, in a folder of its own


def test_they_change_nothing(tmp_path: Path) -> None:
    work, programs = tmp_path / "work", tmp_path / "bin"
    (work / "pipeline").mkdir(parents=True)
    programs.mkdir()
    (programs / "ray-align").write_text(PROGRAM, encoding="utf-8")
    for name in ("dpo.py", "ppo.py", "pipeline/__init__.py"):
        trap = f"open({str(tmp_path / 'was-imported')!r}, 'a').write({name!r})\nraise SystemExit('not this one')\n"
        (work / name).write_text(trap, encoding="utf-8")
    rows = [{**row, "prompt": f"{row['prompt']} {i}"} for i, row in enumerate(GOOD * 4)]
    (work / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (work / "my.toml").write_text(CONFIG + "[train]\nbatch_pairs = 8\n", encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(programs / "ray-align"), "run", "my.toml", "run.name=x"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "was-imported").exists()
    assert summary(work / "runs" / "x")["steps"] == 4
