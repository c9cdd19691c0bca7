"""The house as imports: who may import whom, in any place of a file. Arrows go down only, and never in a circle."""

import ast
import importlib
import pkgutil
from graphlib import CycleError, TopologicalSorter

import pytest

import dpo
import pipeline
import ppo
from tests.places import ROOT

# Of the pipeline, the highest floor first. What stands on one floor does not import each other.
FLOORS = [
    ("cli",),
    ("run", "upkeep", "doctor", "finished"),
    ("stages",),
    ("cluster",),
    ("models",),
    ("data", "record"),
    ("place",),
    ("worker", "report", "claim"),
    ("config", "store"),
    ("process",),
    ("errors",),
]
PREFERENCES = ("dpo.losses", "dpo.divergences", "dpo.terms", "dpo.metrics", "dpo.step", "dpo.dpo")
NO_TORCH = ("store", "data", "config", "claim", "place", "record", "process", "errors")


def _above_and_beside(place):
    """What a part of the pipeline may not import of the pipeline."""
    floor = next(number for number, names in enumerate(FLOORS) if place in names)
    return tuple(f"pipeline.{other}" for names in FLOORS[: floor + 1] for other in names if other != place)


# The first rule whose folder or file a place is in says what that place may not import.
RULES = [
    ("dpo/text/", ("ray", "torch", "deepspeed", "pipeline", "ppo", "dpo.lm", *PREFERENCES)),
    ("dpo/lm/", ("ray", "torch.distributed", "deepspeed", "pipeline", "ppo", "dpo.text", *PREFERENCES)),
    ("dpo/", ("ray", "torch.distributed", "deepspeed", "pipeline", "ppo")),
    ("ppo/", ("ray", "torch.distributed", "pipeline", "dpo.text", "dpo.losses")),
    *(
        (
            f"pipeline/{place}",
            (
                *_above_and_beside(place),
                *(("ray",) if place != "cluster" else ()),
                *(("torch",) if place in NO_TORCH else ()),
            ),
        )
        for names in FLOORS
        for place in names
    ),
    ("pipeline/", ("ray", "torch")),
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


def _covers(rule, place):
    """Whether a rule of a folder, or of a file without its ending, is that of a place."""
    return place.startswith(rule if rule.endswith("/") else f"{rule}/") or place == f"{rule}.py"


def breaches(root):
    """Every import below `root` that a rule forbids, as "file: name"."""
    found = []
    for path in sorted(path for package in ("dpo", "pipeline", "ppo") for path in root.glob(f"{package}/**/*.py")):
        place = path.relative_to(root).as_posix()
        forbidden = next(names for rule, names in RULES if _covers(rule, place))
        package = ".".join(path.relative_to(root).parent.parts)
        for name in sorted(imported(path.read_text(encoding="utf-8"), package)):
            if any(f"{name}.".startswith(f"{outer}.") for outer in forbidden):
                found.append(f"{place}: {name}")
    return found


def test_no_import_goes_outward():
    assert breaches(ROOT) == []


def test_every_rule_has_files_to_look_at():
    places = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("[dp]*/**/*.py")]
    for rule, _ in RULES:
        assert any(_covers(rule, place) for place in places), rule


def graph(root):
    """Which modules each module below `root` imports, those for types and inside functions too."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("dpo", "pipeline", "ppo")
        for path in root.glob(f"{package}/**/*.py")
    }
    found = {}
    for module, path in files.items():
        names = imported(path.read_text(encoding="utf-8"), ".".join(path.relative_to(root).parent.parts))
        known = (next((n for n in (name, name.rpartition(".")[0]) if n in files), None) for name in names)
        found[module] = {name for name in known if name is not None and name != module}
    return found


def circle(imports):
    """Modules that import each other, in a row that ends where it begins; empty where there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_two_files_import_each_other():
    assert circle(graph(ROOT)) == []


@pytest.mark.parametrize(
    "back",
    [
        "from pipeline.place import Place\n",
        "def f():\n    import pipeline.place\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.place import Place\n",
    ],
    ids=["at the top", "in a function", "for types"],
)
def test_a_circle_is_found(tmp_path, back):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "place.py").write_text("from pipeline.record import Record\n")
    (tmp_path / "pipeline" / "record.py").write_text("from pipeline.claim import claim\n")
    (tmp_path / "pipeline" / "claim.py").write_text(back)
    row = circle(graph(tmp_path))
    assert row[0] == row[-1] and set(row) == {"pipeline.place", "pipeline.record", "pipeline.claim"}


BREACHES = [
    ("dpo/a.py", "def f():\n    import ray\n"),
    ("dpo/a.py", "import numpy, ray.data as data\n"),
    ("dpo/lm/a.py", "class A:\n    def f(self):\n        from torch import distributed\n"),
    ("dpo/a.py", "import torch.distributed as dist\n"),
    ("dpo/a.py", "from torch.distributed import barrier\n"),
    ("dpo/a.py", "import torch\ntorch.distributed.barrier()\n"),
    ("dpo/a.py", "import importlib\nray = importlib.import_module('ray')\n"),
    ("dpo/a.py", "from importlib import import_module\nlambda: import_module('ray.train')\n"),
    ("dpo/a.py", "ray = __import__('ray')\n"),
    ("dpo/a.py", "from pipeline.errors import InputError\n"),
    ("dpo/a.py", "if False:\n    import pipeline\n"),
    ("dpo/a.py", "from ppo.kl import kl_penalty\n"),
    ("dpo/text/a.py", "from torch import Tensor\n"),
    ("dpo/text/a.py", "from dpo.lm.sequences import TokenSequence\n"),
    ("dpo/lm/a.py", "from dpo.losses import LOSSES\n"),
    ("dpo/lm/a.py", "from dpo import terms\n"),
    ("dpo/lm/a.py", "from dpo.text.pairs import PreferencePair\n"),
    ("dpo/lm/a.py", "def f():\n    from deepspeed.runtime.zero import GatheredParameters\n"),
    ("ppo/a.py", "import ray\n"),
    ("ppo/models/a.py", "from torch import distributed\n"),
    ("ppo/a.py", "from pipeline.errors import InputError\n"),
    ("ppo/a.py", "from dpo.losses import dpo_loss\n"),
    ("pipeline/a.py", "try:\n    import ray\nexcept ImportError:\n    pass\n"),
    ("pipeline/run.py", "from ray import data\n"),
    ("pipeline/run.py", "from pipeline.cli import main\n"),
    ("pipeline/run.py", "from pipeline import upkeep\n"),
    ("pipeline/stages/a.py", "def f():\n    import ray.train\n"),
    ("pipeline/stages/a.py", "from pipeline.doctor.visit import examine\n"),
    ("pipeline/cluster/a.py", "from pipeline.stages.score import score\n"),
    ("pipeline/models/a.py", "from pipeline.cluster.pool import on_pool\n"),
    ("pipeline/models/a.py", "import ray\n"),
    ("pipeline/data/a.py", "from pipeline.models.start import Weights\n"),
    ("pipeline/data/a.py", "import torch\n"),
    ("pipeline/data/a.py", "from pipeline.record import Made\n"),
    ("pipeline/place.py", "from pipeline.data.sources import DataFile\n"),
    ("pipeline/place.py", "import torch\n"),
    ("pipeline/claim.py", "from pipeline.place import Place\n"),
    ("pipeline/report/a.py", "if TYPE_CHECKING:\n    from pipeline.place import Place\n"),
    ("pipeline/report/a.py", "from pipeline.worker.job import Job\n"),
    ("pipeline/worker/a.py", "def f():\n    import ray.train\n"),
    ("pipeline/worker/a.py", "from pipeline.cluster.group import run_group\n"),
    ("pipeline/worker/a.py", "from pipeline import stages\n"),
    ("pipeline/worker/a.py", "from ..stages import jobs\n"),
    ("pipeline/store/a.py", "from .. import stages\n"),
    ("pipeline/store/a.py", "from torch import Tensor\n"),
    ("pipeline/store/a.py", "from pipeline.config import Config\n"),
    ("pipeline/config/a.py", "from pipeline.store.folder import Folder\n"),
    ("pipeline/errors.py", "from pipeline.config import Config\n"),
]


@pytest.mark.parametrize(("place", "code"), BREACHES)
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
        ("dpo/a.py", "from dpo.lm.batch import collate\nfrom dpo.text.pairs import PreferencePair\n"),
        ("pipeline/cluster/a.py", "import ray, torch.distributed\nfrom pipeline.worker import loop\n"),
        ("pipeline/worker/a.py", "import torch.distributed as dist\nfrom pipeline.store import cache\n"),
        ("ppo/a.py", "import accelerate\nfrom dpo.lm.head import target_logps\n"),
        ("pipeline/run.py", "from pipeline.stages.prepare import prepare\n"),
        ("pipeline/stages/a.py", "from pipeline.cluster.items import Each\n"),
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
