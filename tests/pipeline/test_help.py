import importlib.metadata
import re
import sys

import pytest

from pipeline import Config
from pipeline.cli.verbs import FAIL_ON, VERBS
from pipeline.config.several import read_grid
from pipeline.doctor.findings import SEVERITIES
from pipeline.run import STAGES
from tests.pipeline.test_cli import left_with
from tests.pipeline.verbs import VERBS as LISTED
from tests.places import ROOT

QUICKSTART = ROOT / "examples/quickstart.toml"
OPTIONS = {"doctor": {"--fail-on", "--card"}, "cache verify": {"--rows"}, "cache gc": {"--unused-days"}}
OPTIONS |= {"sweep": {"--random"}, "compare": {"--dir", "--html"}}
OPTIONS["init"] = {"--model", "--data", "--eval", "--from", "--program", "--devices"}
OPTIONS["chat"] = {"--show", "--temperature", "--max-tokens"}
FLAGS = {name: {"--restart", "--trial"} for name in ("run", *STAGES)} | {"push": {"--public"}}


@pytest.fixture(autouse=True)
def width(monkeypatch):
    """Help is wrapped at the width of the terminal."""
    monkeypatch.setenv("COLUMNS", "80")


def test_help_has_one_line_a_verb_and_is_what_ray_align_alone_prints(capsys):
    page = left_with(0, capsys, "--help")
    assert left_with(0, capsys) == page
    lines = re.search(r"^  \{run.+?\n(.+?)\n\n", page, re.M | re.S).group(1).splitlines()
    assert [line.split()[0] for line in lines] == LISTED
    assert all(len(line.split()) > 4 for line in lines)
    assert "--keys [SECTION ...]" in page
    assert "--version" in page


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_is_its_own(name, capsys):
    page, expected = left_with(0, capsys, *name.split(), "--help"), OPTIONS.get(name, set()) | FLAGS.get(name, set())
    words, lists_keys = VERBS[name].words, {"--keys"} if name != "compare" else set()
    assert page.startswith(f"usage: ray-align {name} {words.first} ")
    assert set(re.findall(r"--[a-z][a-z-]+", page)) == {"--help"} | lists_keys | expected
    assert " ".join(page.split()).count("(default: ") == len(expected)
    assert all(text in page for text in (f"  {words.first} ", f"  {words.others}", *VERBS[name].about.splitlines()))
    assert re.findall(r"^  (\d+)  +\w", page, re.M) == ["0", "1", "2", "130"]
    assert page.endswith(f"example:\n  ray-align {name} {VERBS[name].example}\n")


@pytest.mark.parametrize("name", [name for name in VERBS if name not in ("sweep", "compare")])
def test_the_example_of_a_verb_works(name):
    config, *words = VERBS[name].example.split()
    assert config in ("my.toml", "examples/quickstart.toml")
    options = OPTIONS.get(name, set())
    assert set(words[::2]) >= options or name in ("init", "chat")
    Config.load(str(QUICKSTART), [] if options or VERBS[name].argument else words)


def test_the_example_of_the_sweep_has_as_many_combinations_as_it_seems():
    config, *words, _, drawn = VERBS["sweep"].example.split()
    grid = read_grid(Config, words)
    assert (config, grid.size, int(drawn)) == ("my.toml", 6, 4)
    assert all(Config.load(str(QUICKSTART), grid.words(number)) for number in range(grid.size))


def test_the_example_of_the_comparison_has_its_options():
    assert set(re.findall(r"--\w+", VERBS["compare"].example)) == OPTIONS["compare"]


def test_what_the_options_do_is_said_with_defaults_and_units(capsys):
    pages = [left_with(0, capsys, *verb.split(), "--help") for verb in ("doctor", "cache verify", "cache gc")]
    doctor, verify, gc = (" ".join(page.split()) for page in pages)
    assert "--fail-on SEVERITY exit with status 1 if a finding is at least this severe: note, warn" in doctor
    assert "(default: unset, findings do not change the exit status)" in doctor
    assert "--card NAME model of the GPUs that the run will have, for memory and time: A100-40GB, A100" in doctor
    assert "(default: this machine's GPU; without one, memory is not compared)" in doctor
    assert "cache" not in doctor
    assert "--rows N how many cached sequences to score again (default: 100)" in verify
    assert "--unused-days DAYS also remove the log-probs of models that were not used for more than so many days" in gc
    assert "(default: unset, nothing is removed for its age)" in gc


def test_the_help_of_the_cache_lists_its_verbs(capsys):
    page = left_with(0, capsys, "cache", "--help")
    assert re.findall(r"^    (\w+) +\w+ \w+ ", page, re.M) == ["ls", "verify", "gc"]
    assert set(re.findall(r"--[a-z-]+", page)) == {"--help"}


def test_fail_on_takes_the_doctors_severities():
    assert FAIL_ON.choices == SEVERITIES


def test_the_version_is_that_of_the_installed_package(capsys, monkeypatch):
    assert left_with(0, capsys, "--version") == f"ray-align {importlib.metadata.version('ray-align')}\n"
    monkeypatch.setattr(sys, "path", [])  # where nothing is installed
    assert "ray-align is not installed, so its version is unknown" in left_with(2, capsys, "--version")
