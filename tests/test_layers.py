"""The rings: dpo <- ppo, dpo <- pipeline without ray <- pipeline/stages. Imports go inward only, anywhere in a file."""

import ast
import importlib
import pkgutil

import pytest

import dpo
import pipeline
import ppo
from tests.places import ROOT

# The first rule whose folder a file is in says what that file may not import.
RULES = [
    ("dpo/", ("ray", "torch.distributed", "pipeline", "ppo")),
    ("ppo/", ("ray", "torch.distributed", "pipeline")),
    ("pipeline/stages/", ()),
    ("pipeline/store/", ("ray", "torch", "pipeline.stages")),
    ("pipeline/worker/", ("ray", "pipeline.stages")),
    ("pipeline/", ("ray",)),
]
MODULES = sorted(
    module.name
    for package in (dpo, pipeline, ppo)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")  # which runs
)


def imported(code, package):
    """Every name that a file imports. `package` is the dotted name of its folder, for relative imports."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}".strip(".") for alias in node.names}
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            names.add(f"torch.{node.attr}")  # after `import torch` it is there without an import of its own
    return names


def breaches(root):
    """Every import below `root` that a rule forbids, as "file: name"."""
    found = []
    for path in sorted(path for package in ("dpo", "pipeline", "ppo") for path in root.glob(f"{package}/**/*.py")):
        place = path.relative_to(root).as_posix()
        forbidden = next(names for folder, names in RULES if place.startswith(folder))
        package = ".".join(path.relative_to(root).parent.parts)
        for name in sorted(imported(path.read_text(encoding="utf-8"), package)):
            if any(f"{name}.".startswith(f"{outer}.") for outer in forbidden):
                found.append(f"{place}: {name}")
    return found


def test_no_import_goes_outward():
    assert breaches(ROOT) == []


def test_every_rule_has_files_to_look_at():
    places = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("[dp]*/**/*.py")]
    for folder, _ in RULES:
        assert sum(place.startswith(folder) for place in places) >= 3, folder


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("dpo/a.py", "def f():\n    import ray\n"),
        ("dpo/a.py", "import numpy, ray.data as data\n"),
        ("dpo/models/a.py", "class A:\n    def f(self):\n        from torch import distributed\n"),
        ("dpo/a.py", "import torch.distributed as dist\n"),
        ("dpo/a.py", "from torch.distributed import barrier\n"),
        ("dpo/a.py", "import torch\ntorch.distributed.barrier()\n"),
        ("dpo/a.py", "import importlib\nray = importlib.import_module('ray')\n"),
        ("dpo/a.py", "from importlib import import_module\nlambda: import_module('ray.train')\n"),
        ("dpo/a.py", "ray = __import__('ray')\n"),
        ("dpo/a.py", "from pipeline.errors import InputError\n"),
        ("dpo/a.py", "if False:\n    import pipeline\n"),
        ("dpo/a.py", "from ppo.kl import kl_penalty\n"),
        ("ppo/a.py", "import ray\n"),
        ("ppo/models/a.py", "from torch import distributed\n"),
        ("ppo/a.py", "from pipeline.errors import InputError\n"),
        ("pipeline/a.py", "try:\n    import ray\nexcept ImportError:\n    pass\n"),
        ("pipeline/run.py", "from ray import data\n"),
        ("pipeline/worker/a.py", "def f():\n    import ray.train\n"),
        ("pipeline/worker/a.py", "from pipeline.stages.fit import fit\n"),
        ("pipeline/worker/a.py", "from pipeline import stages\n"),
        ("pipeline/worker/a.py", "from ..stages import fit\n"),
        ("pipeline/store/a.py", "from .. import stages\n"),
        ("pipeline/store/a.py", "from torch import Tensor\n"),
    ],
)
def test_a_breach_is_found_wherever_it_hides(tmp_path, place, code):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")
    assert len(breaches(tmp_path)) == 1
    assert breaches(tmp_path)[0].startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("dpo/a.py", "import raytracer, torch\nfrom dpo import ray\nfrom . import pipeline\n'import ray'\n"),
        ("dpo/a.py", "import importlib\nimportlib.import_module('array')\nprint('ray')\n"),
        ("pipeline/stages/a.py", "import ray, torch.distributed\nfrom pipeline.worker import loop\n"),
        ("pipeline/worker/a.py", "import torch.distributed as dist\nfrom pipeline.store import cache\n"),
        ("ppo/a.py", "import accelerate\nfrom dpo.lm.head import target_logps\n"),
        ("pipeline/run.py", "from pipeline.stages.fit import fit\n"),
        ("pipeline/store/a.py", "import pyarrow\nfrom . import stages\n"),
    ],
)
def test_what_is_allowed_is_no_breach(tmp_path, place, code):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")
    assert breaches(tmp_path) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


def test_all_names_exist():
    assert all(getattr(package, name) for package in (dpo, pipeline, ppo) for name in package.__all__)
