"""The guides in examples/guides/ name what exists, and leave nothing out of what they list."""

import ast
import re

import pytest

from pipeline import Config
from tests.places import ROOT
from tests.test_contributing import missing, spans, wrong_commands
from tests.test_examples import blocks, commands

GUIDES = ROOT / "examples" / "guides"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(GUIDES.glob("*.md"))}
OURS = [name for name in PAGES if name not in ("code", "ppo")]  # which have tests of their own
SECTIONS = "|".join(Config.model_fields)
KEY = re.compile(rf"(?<![\w./-])({SECTIONS})\.(?!yaml|toml|json|md)([a-z_0-9]+)\b(?!\()")


def keys_of_section(name):
    """The keys of a section, of all its kinds together."""
    found = Config.model_fields[name].annotation
    options = getattr(found, "__args__", ()) or (found,)
    return {key for option in options for key in option.model_fields}


def listed(text):
    """The names that a list of the form "- **`name`** ..." has, also several in one item."""
    items = re.findall(r"^- (\*\*`[^`]+`\*\*(?:, \*\*`[^`]+`\*\*)*)", text, re.M)
    return [name for item in items for name in re.findall(r"`([^`]+)`", item)]


# All guides


@pytest.mark.parametrize("name", PAGES)
def test_prose_has_lines_of_at_most_120_characters(name):
    lines = [line for line in PAGES[name].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", OURS)
def test_a_guide_names_places_and_commands_that_exist(name):
    typed = [line for line in commands(PAGES[name]) if line.startswith(("ray-align", "pytest", "python -m"))]
    assert wrong_commands("".join(f"`{line}`\n" for line in typed)) == []
    assert [place for place in missing(PAGES[name]) if "/" in place] == []  # my.toml is the reader's own


@pytest.mark.parametrize("name", PAGES)
def test_a_guide_links_to_files_that_exist(name):
    links = re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", PAGES[name])
    assert [link for link in links if "://" not in link and not (GUIDES / link).exists()] == []


@pytest.mark.parametrize("name", OURS)
def test_a_guide_names_keys_that_exist(name):
    found = [match for span in spans(PAGES[name]) for match in KEY.findall(span)]
    assert [f"{section}.{key}" for section, key in found if key not in keys_of_section(section)] == []


@pytest.mark.parametrize("name", OURS)
def test_configurations_in_a_guide_load(name, tmp_path):
    """What a piece of one leaves out is added."""
    for number, block in enumerate(blocks(PAGES[name], "toml")):
        path = tmp_path / f"{number}.toml"
        rest = "" if "[data]" in block else '[data]\ntrain = "pairs.jsonl"\n'
        rest += "" if "[policy]" in block else '[policy]\nkind = "huggingface"\npath = "model"\n'
        path.write_text(f"{block}\n{rest}", encoding="utf-8")
        Config.load(str(path))


# The doctor


def findings_of_the_doctor():
    """The names of all findings, where `Finding` and what makes one are called; and those of rejected rows."""
    named = {"Finding": 0, "finding": 0, "_pairs_of_rows": 1}
    found = set()
    for path in (ROOT / "pipeline" / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = getattr(node, "func", None)
            called = getattr(function, "id", getattr(function, "attr", None))
            if isinstance(node, ast.Call) and called in named and len(node.args) > named[called]:
                found.add(ast.unparse(node.args[named[called]]))
            if isinstance(node, ast.Tuple) and len(node.elts) == 6:  # the cases of begin tokens
                found.add(ast.unparse(node.elts[0]))
    names = {ast.literal_eval(text) for text in found if text.startswith("'")}
    assert found - {repr(name) for name in names} == {"name", "*case", "f\"rejected-{kind.replace(' ', '-')}\""}
    return names | {f"rejected-{kind.replace(' ', '-')}" for kind in kinds_of_rejections()}


def kinds_of_rejections():
    """The kinds of `Rejection` and of faulty rows, as the code gives them."""
    places = [*(ROOT / "dpo" / "text").glob("*.py"), *(ROOT / "pipeline" / "data").glob("*.py")]
    code = [path.read_text(encoding="utf-8") for path in places]
    given = {
        argument.value
        for text in code
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Rejection", "Row") and len(node.args) > 1
        for argument in node.args[1:]
        if isinstance(argument, ast.Constant) and argument.value
    }
    given |= {kind for text in code for kind in re.findall(r'kind(?:: str)? = "([\w -]+)"', text)}
    return given | {kind for text in code for kind in re.findall(r', "([\w -]+)"$', text, re.M) if kind in WIDE_KINDS}


WIDE_KINDS = {"huge row", "not UTF-8", "broken row", "broken text"}  # which are given as parts of tuples


def test_every_finding_of_the_doctor_has_its_line():
    names = listed(PAGES["doctor"])
    assert len(names) == len(set(names))
    assert set(names) == findings_of_the_doctor()
