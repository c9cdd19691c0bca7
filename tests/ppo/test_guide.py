"""The programs of examples/guides/ppo.md run as they stand and learn; what the page names is there."""

import re
import runpy
import sys

import pytest

from tests.places import ROOT
from tests.test_contributing import missing, names_in, places, spans
from tests.test_examples import blocks

PAGE = (ROOT / "examples" / "guides" / "ppo.md").read_text(encoding="utf-8")
PROGRAMS = {block.split(":")[0].removeprefix("# "): block for block in blocks(PAGE, "python")}
CASES = ROOT / "tests" / "ppo" / "test_trl_divergences.py"


def test_every_kind_of_policy_has_its_program():
    assert [*PROGRAMS] == ["words.py", "causal.py", "seq2seq.py", "network.py", "adapters.py", "rloo.py"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'base' has no value head saved with it", "ignore:`is_gradient_checkpointing` is")
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "words.py"])
def test_a_program_runs_and_its_policy_learns(name, tmp_path, monkeypatch, capsys):
    """From a fifth, which is chance, or less, to more than half of the greatest reward."""
    if name == "adapters.py":
        pytest.importorskip("peft")
    for each in ("words.py", name):
        (tmp_path / each).write_text(PROGRAMS[each], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "words", raising=False)
    runpy.run_path(name, run_name="__main__")
    monkeypatch.delitem(sys.modules, "words")
    rewards = [float(number) for number in re.findall(r"^reward (\d\.\d\d), KL", capsys.readouterr().out, re.M)]
    assert len(rewards) >= 12
    assert sum(rewards[:2]) / 2 < 0.35
    assert sum(rewards[-3:]) / 3 > 0.6
    (saved,) = re.findall(r'trainer\.save_pretrained\("([\w-]+)"\)', PROGRAMS[name])
    assert (tmp_path / saved / "README.md").is_file()


def test_every_place_that_the_page_names_exists():
    statistics = ("ppo/val/", "ppo/returns/", "ppo/loss/")
    assert [place for place in missing(PAGE) if not place.startswith(statistics)] == []
    assert sum(place.startswith("tests/ppo/") for place in places(PAGE)) > 10


def test_every_correction_names_a_test_and_every_case_of_trls_is_there():
    table = PAGE.partition("### Corrected")[2].partition("### Refused")[0]
    named = {span for span in spans(table) if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+){2,}", span)}
    tests = {name.removeprefix("test_") for name in names_in(CASES) if name.startswith("test_")}
    settings = {"gradient_checkpointing", "early_stopping_over"}
    assert named - settings <= tests
    assert tests - named == {"there_is_a_test_for_every_case", "empty_response_fails"}  # which is refused
