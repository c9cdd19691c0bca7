import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dpo

MODULES = sorted(module.name for module in pkgutil.walk_packages(dpo.__path__, "dpo."))
FILES = sorted(Path(dpo.__file__).parent.rglob("*.py"))


def test_there_are_modules_to_look_at():
    assert {"dpo.losses", "dpo.lm.hf", "dpo.lm.weights"} <= set(MODULES)
    assert len(FILES) == len(MODULES) + 1  # dpo/__init__.py itself is not listed


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_mathematics_does_not_know_the_cluster(path):
    """Neither ray nor the pipeline nor torch.distributed is imported, not even inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not [name for name in names if f"{name}.".startswith(("ray.", "pipeline.", "torch.distributed."))]


def test_all_names_exist():
    assert all(getattr(dpo, name) for name in dpo.__all__)


def test_the_package_itself_imports_nothing_heavy():
    code = "import sys, dpo; print(*sorted({'torch', 'transformers', 'x_transformers'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
