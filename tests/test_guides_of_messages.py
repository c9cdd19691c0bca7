"""The guides to the doctor and to troubleshooting have the findings and the messages of the program."""

import ast
import re

from pipeline.doctor.noticed import SAID
from pipeline.doctor.rejected import ON_THE_WAY, WHY
from tests.places import ROOT
from tests.test_guides import PAGES


def listed(text):
    """The names that a list of the form "- **`name`** ..." has, also several in one item."""
    items = re.findall(r"^- (\*\*`[^`]+`\*\*(?:, \*\*`[^`]+`\*\*)*)", text, re.M)
    return [name for item in items for name in re.findall(r"`([^`]+)`", item)]


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
    rejected = "kind.replace(' ', '-') if kind in ON_THE_WAY else f\"rejected-{kind.replace(' ', '-')}\""
    assert found - {repr(name) for name in names} == {"name", "*case", "said.finding", rejected}
    names |= {said.finding for said in SAID.values()}
    kinds = {kind: kind.replace(" ", "-") for kind in kinds_of_rejections() | set(WHY)}
    return names | {name if kind in ON_THE_WAY else f"rejected-{name}" for kind, name in kinds.items()}


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


# Messages


def texts_of_the_code():
    """Every string of the packages; of a formatted one the parts between its values, joined by a mark."""
    found = []
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "dpo").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_in_troubleshooting_are_those_of_the_program():
    quoted = [" ".join(text.split()) for text in re.findall(r'\*\*"([^"]+)"\*\*', PAGES["troubleshooting"])]
    assert len(quoted) > 40
    code = texts_of_the_code()
    parts = [part.strip() for text in quoted for part in text.split("...")]
    assert [part for part in parts if part not in code] == ["No space left on device"]  # which the system says
