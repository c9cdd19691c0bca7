"""What CONTRIBUTING.md and its guide name exists, and what they say of the code is so."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from typing import NamedTuple

import pytest

from tests.places import ROOT
from tests.test_examples import VERBS, blocks, commands, of_the_program
from tests.test_layers import FLOORS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MARKERS = {line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
EXTRAS = set(PROJECT["project"]["optional-dependencies"])
PAGES = ("CONTRIBUTING.md", "examples/guides/code.md")
PACKAGES = ("dpo", "pipeline", "ppo")
PLACE = re.compile(r"^(?:dpo|pipeline|ppo|tests|examples|\.ci)/[\w./-]*(?:::[\w.]+)?$")
OF_THE_TOP = re.compile(r"^[\w.-]+\.(?:md|toml)$")
PROGRAMS = ("python3", ".", "pip", "pre-commit", "pytest", "python", "bash", "ruff", "pyright", "ray-align")


def spans(text):
    """What stands between backticks in the prose, blocks left out."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def lines_to_type(text):
    """Commands of blocks and of the prose, one a line, `&&` taken apart."""
    typed = commands(text) + [span for span in spans(text) if span.split()[0] in PROGRAMS]
    return [part.strip() for line in typed if line for part in line.split("&&")]


def places(text):
    """Every path that a page names, also as `path::name`, in its prose or in a command."""
    words = [*spans(text), *(word for line in lines_to_type(text) for word in shlex.split(line))]
    return [word for word in words if PLACE.match(word) or OF_THE_TOP.match(word)]


def names_in(path):
    """What a Python file defines: names of the module, and `Class.name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = _defined(tree.body)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for name in _defined(node.body)}
    return found


def _defined(body):
    found = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return found | {target.id for target in targets if isinstance(target, ast.Name)}


def is_there(place):
    path, _, name = place.partition("::")
    return (ROOT / path).exists() and (not name or name in names_in(ROOT / path))


def missing(text):
    """The places of a page that are not there."""
    return [place for place in places(text) if not is_there(place)]


def wrong_commands(text):
    """Commands of a page that would not run."""
    found = []
    for line in lines_to_type(text):
        program, *words = shlex.split(line)
        after_m = words[words.index("-m") + 1] if "-m" in words else ""
        asked = set(re.findall(r"\w+", after_m)) - {"and", "or", "not"} if program == "pytest" else set()
        wanted = {extra for word in words for extra in re.findall(r"[a-z]+", word.partition("[")[2])}
        runs = program in PROGRAMS and asked <= MARKERS and wanted <= EXTRAS
        if program.startswith("python") and after_m:
            runs = runs and importlib.util.find_spec(after_m) is not None
        if program == "ray-align":
            runs = runs and all(verb in VERBS for verb, *_ in of_the_program([line]))
        found += [] if runs else [line]
    return found


@pytest.fixture(scope="module")
def pages():
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}


# What the pages name


@pytest.mark.parametrize("name", PAGES)
def test_every_place_that_a_page_names_exists(pages, name):
    assert len(places(pages[name])) > 30
    assert missing(pages[name]) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_python_file_is_named_by_its_whole_path(pages, name):
    """Else nothing would look for it. In the line of the stages their folder is left out."""
    looking_so = [span for span in spans(pages[name]) if re.search(r"^\S*(\.py|::)\S*$", span)]
    other = [span for span in looking_so if not PLACE.match(span)]
    assert [span for span in other if not (ROOT / "pipeline" / "stages" / span).is_file()] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_would_run(pages, name):
    assert lines_to_type(pages[name])
    assert wrong_commands(pages[name]) == []


def test_every_marker_has_its_line(pages):
    rows = re.findall(r"^\| `(\w+)`: .*`pytest -m ([^`]+)`", pages["CONTRIBUTING.md"], re.M)
    assert {name for name, _ in rows} == MARKERS
    assert all(re.findall(r"\w+", expression)[0] == name for name, expression in rows)


def test_every_package_has_its_line_in_the_tour(pages):
    tour = places(pages["CONTRIBUTING.md"].partition("## The tour")[2].partition("## The rules")[0])
    packages = {f"{path.parent.relative_to(ROOT).as_posix()}/" for p in PACKAGES for path in ROOT.glob(f"{p}/**/*.py")}
    loose = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("pipeline/[a-z]*.py")}
    assert packages - {"pipeline/"} <= {*tour}
    assert loose <= {*tour}


def test_the_drawn_floors_are_those_that_are_checked(pages):
    (drawn,) = [block for block in blocks(pages["CONTRIBUTING.md"], "text") if "pipeline: " in block]
    line = " ".join(drawn.partition("dpo: ")[0].replace("pipeline: ", "").split())
    assert [set(floor.strip().split(" | ")) for floor in line.split("->")] == [set(floor) for floor in FLOORS]


@pytest.mark.parametrize("name", PAGES)
def test_lines_are_no_longer_than_those_of_the_code(pages, name):
    assert [line for line in pages[name].splitlines() if len(line) > 120] == []


def test_the_tests_that_show_what_is_claimed_exist():
    text = (ROOT / "examples" / "guides" / "numbers.md").read_text(encoding="utf-8").partition("## What is claimed")[2]
    typed = [span for span in spans(text) if span.startswith("pytest ")]
    assert len({*typed}) > 10
    page = "".join(f"`{line}`\n" for line in typed)
    assert missing(page) == wrong_commands(page) == []


# What the rules say of the code


class Source(NamedTuple):
    place: str
    tree: ast.Module
    lines: int


def source_of(place, code):
    return Source(place, ast.parse(code), len(code.splitlines()))


@pytest.fixture(scope="module")
def sources():
    """Every Python file of the packages."""
    paths = [path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")]
    return [source_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def handles(kind):
    """Whether a file has a handler for a class, among others or alone; for None, one that names no class."""

    def found(source):
        handlers = [node.type for node in ast.walk(source.tree) if isinstance(node, ast.ExceptHandler)]
        if kind is None:
            return None in handlers
        return any(kind in re.findall(r"\w+", ast.unparse(handler)) for handler in handlers if handler is not None)

    return found


def asks_for_attributes(source):
    return any(isinstance(node, ast.Name) and node.id == "hasattr" for node in ast.walk(source.tree))


def is_long(source):
    return source.lines > 300


def lengths(source):
    """Lines of each function."""
    nodes = (n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.end_lineno - node.lineno + 1 for node in nodes]


def has_a_long_function(source):
    return max(lengths(source), default=0) > 60


QUIET = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)


def acts_at_import(source):
    """A statement of the module that defines and imports nothing, and says nothing about what is defined."""
    body = [
        part for node in source.tree.body for part in ([*node.body, *node.orelse] if type(node) is ast.If else [node])
    ]
    texts = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return any(not isinstance(node, QUIET) and node not in texts for node in body)


def has_a_global(source):
    return any(isinstance(node, ast.Global) for node in ast.walk(source.tree))


# Words in the sentence of a rule that names files, and which files these are; without words there are none.
LISTS = [
    ("`except Exception` is in", handles("Exception")),
    ("`except BaseException` is in", handles("BaseException")),
    ("`hasattr` is in", asks_for_attributes),
    ("files have at most 300 lines; more have", is_long),
    ("", has_a_long_function),
    ("runs when it is imported", acts_at_import),
    ("", handles(None)),
    ("", has_a_global),
]


def named_in(page, words):
    """The files of the packages in the one sentence of a page that holds some words."""
    sentences = re.split(r"\. |\n\n|\n *- |\n\d+\. ", re.sub(r"\n +(?![-\d])", " ", page))
    (sentence,) = [one for one in sentences if words in " ".join(one.split())]
    return {place for place in places(sentence) if place.startswith(PACKAGES)}


@pytest.mark.parametrize(("words", "found"), LISTS, ids=[words or "nowhere" for words, _ in LISTS])
def test_a_rule_names_all_of_its_exceptions(pages, sources, words, found):
    named = named_in(pages["CONTRIBUTING.md"], words) if words else set()
    assert bool(named) == bool(words)
    assert {source.place for source in sources if found(source)} == named


def test_19_of_20_functions_are_below_35_lines(sources):
    found = [lines for source in sources for lines in lengths(source)]
    assert sum(lines >= 35 for lines in found) < 0.05 * len(found)


def test_the_stages_of_the_program_are_seven_calls(sources):
    (run,) = [source for source in sources if source.place == "pipeline/run.py"]
    (stages,) = [n for n in run.tree.body if isinstance(n, ast.FunctionDef) and n.name == "stages"]
    called = [ast.unparse(n.func) for n in ast.walk(stages) if isinstance(n, ast.Call)]
    assert called.count("record.stage") == 7


# That the checks above find what is wrong


PAGE = """
Read `dpo/losses.py`, `dpo/gone.py`, `dpo/losses.py::LOSSES`, `dpo/losses.py::GONE` and `dpo/step.py::Coupling.of`.
`pytest -m "slow and not slwo"`, `pytest tests/gone.py`, `python -m tests.gone`, `pip install -e ".[tset]"`.
```bash
pytest tests/test_layers.py && ray-align rum examples/gone.toml
make all
```
"""


def test_a_page_that_is_wrong_is_found():
    assert missing(PAGE) == ["dpo/gone.py", "dpo/losses.py::GONE", "examples/gone.toml", "tests/gone.py"]
    wrong = {'pytest -m "slow and not slwo"', "python -m tests.gone", 'pip install -e ".[tset]"', "make all"}
    assert {*wrong_commands(PAGE)} == {*wrong, "ray-align rum examples/gone.toml"}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("try:\n    f()\nexcept (OSError, Exception):\n    pass\n", handles("Exception")),
        ("try:\n    f()\nexcept:\n    pass\n", handles(None)),
        ("def f(x):\n    return hasattr(x, 'y')\n", asks_for_attributes),
        ("a = 1\n" * 301, is_long),
        ("def f():\n" + "    a = 1\n" * 60, has_a_long_function),
        ("import os\nos.environ['A'] = '1'\nprint(1)\n", acts_at_import),
        ("if True:\n    print(1)\n", acts_at_import),
        ("def f():\n    global a\n    a = 1\n", has_a_global),
    ],
)
def test_a_breach_of_a_rule_is_found(code, found):
    assert found(source_of("dpo/a.py", f'"""A file."""\n\nfrom dpo import b\n\n{code}'))


def test_a_file_without_a_breach_is_none():
    code = '"""A file."""\n\nfrom dpo import b\n\nA: int = len("ab")\n\n\ndef f(x):\n    return getattr(x, "y")\n'
    assert not any(found(source_of("dpo/a.py", code)) for _, found in LISTS)
