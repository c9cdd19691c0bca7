"""DeepSpeed is imported without what no run uses."""

import subprocess
import sys

import pytest

from pipeline.worker.zero import _absent
from tests.places import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("module", ["loop", "saving", "linear"])
def test_a_tracker_that_is_installed_is_not_loaded_with_deepspeed(module, tmp_path):
    """And whoever asks for it later gets it."""
    (tmp_path / "mlflow.py").write_text("")
    code = f"import pipeline.worker.{module}; assert 'mlflow' not in sys.modules; import mlflow; print(mlflow.__file__)"
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(tmp_path / "mlflow.py"))


def test_one_that_is_loaded_stays(monkeypatch):
    there = object()
    monkeypatch.setitem(sys.modules, "mlflow", there)
    with _absent("mlflow"):
        assert sys.modules["mlflow"] is there
    assert sys.modules["mlflow"] is there
