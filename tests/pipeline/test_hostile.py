"""Input that means harm: what becomes of it, within 1 GB and 30 seconds each. Nothing of it is executed."""

import json
import os
import subprocess
import sys

import pytest

from tests.pipeline.hostile import FILES, TEMPLATES
from tests.places import ROOT

pytestmark = pytest.mark.slow
MOST_BYTES, MOST_SECONDS = 1 << 30, 30


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All cases in one process of their own, since one of them may kill it."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (write, _) in FILES.items():
        (folder / name.replace(" ", "-")).mkdir()
        write(folder / name.replace(" ", "-"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "tests.pipeline.hostile", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", FILES)
def test_a_file(found, name):
    case, expected = found[name], FILES[name][1]
    assert case["bytes"] < MOST_BYTES and case["seconds"] < MOST_SECONDS
    assert case["found"].keys() == expected.keys()
    assert all(case["found"][kind] == number for kind, number in expected.items() if number >= 0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template(found, name):
    case = found[name]
    assert case["bytes"] < MOST_BYTES and case["seconds"] < MOST_SECONDS
    assert case["found"]["refused"] == TEMPLATES[name][1]
    assert case["found"]["row"] == "Rejection"
    assert "root:" not in case["found"]["said"]


def test_there_are_enough():
    """Beside these: URIs and paths in config/test_load.py, texts in report/test_shown.py, pickles in worker/."""
    assert len(FILES) + len(TEMPLATES) >= 60
