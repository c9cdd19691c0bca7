"""The jobs of the CI workflow: together they run what `.ci/run` runs, and no test twice."""

import re
import sys

import pytest
import yaml

from tests.places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMAND = re.compile(r'^(?:HF_HUB_OFFLINE=1 )?pytest (?:-n \w+ --dist loadfile )?-m "([^"]+)"')

STARTING_RANKS = {"groups", "own_groups", "two_ranks", "sharded"}  # fixtures


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def marks(project):
    """The names of the project's own marks."""
    return {line.partition(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]}


@pytest.fixture(scope="module")
def whole():
    """The lines of the script that does everything in order."""
    return (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def collected():
    """Every test there is, with its marks and its fixtures."""
    found = Collected()
    apart = ["-p", "no:faulthandler", "-p", "no:cacheprovider"]  # what would be shared with the session around it
    assert pytest.main(["--collect-only", "-q", *apart, "--rootdir", str(ROOT), str(ROOT / "tests")], [found]) == 0
    return found


class Collected:
    """Listens to a collection."""

    def pytest_collection_finish(self, session):
        self.marks = {item.nodeid: {mark.name for mark in item.iter_markers()} for item in session.items}
        self.fixtures = {item.nodeid: {*item.fixturenames} for item in session.items}


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def expressions(lines):
    """The marks that each call of pytest asks for."""
    return [match[1] for line in lines if (match := COMMAND.match(line))]


def selects(expression, of_test, marks):
    """Whether pytest runs a test with these marks. An expression of marks is one of Python, too."""
    return eval(expression, {"__builtins__": {}}, {mark: mark in of_test for mark in marks})


def test_every_test_is_run_by_one_job_or_is_long(jobs, collected, marks, whole):
    of_jobs = [asked for job in jobs.values() for asked in expressions(commands(job))]
    assert len(of_jobs) == len(jobs)
    for calls in (of_jobs, expressions(whole)):
        runs = {test: [e for e in calls if selects(e, own, marks)] for test, own in collected.marks.items()}
        assert {test: e for test, e in runs.items() if len(e) != ("long" not in collected.marks[test])} == {}
        assert {e for found in runs.values() for e in found} == {*calls}


def test_the_marks_that_jobs_name_are_those_of_the_project(jobs, marks):
    for job in jobs.values():
        (asked,) = expressions(commands(job))
        named = set(re.findall(r"\w+", asked)) - {"and", "or", "not"}
        assert named and named <= marks


def test_every_mark_says_what_it_means_and_is_used(project, collected):
    lines = project["tool"]["pytest"]["ini_options"]["markers"]
    assert all(re.fullmatch(r"\w+: .+", line) for line in lines)
    used = set.union(*collected.marks.values())
    assert {line.partition(":")[0] for line in lines} <= used


def test_process_groups_are_marked(collected):
    """Ranks are processes of their own, which are seen by the fixtures that start them."""
    starting = {test for test, fixtures in collected.fixtures.items() if fixtures & STARTING_RANKS}
    assert len(starting) > 100
    assert {test for test in starting if "group" not in collected.marks[test]} == set()


def test_linting_is_that_of_the_whole_script(jobs, whole):
    lint = [line for line in whole if line.startswith(("ruff", "pyright"))]
    assert len(lint) == 3
    assert [line for line in commands(jobs["fast"]) if line.startswith(("ruff", "pyright"))] == lint


def test_the_torch_that_jobs_install_is_the_one_that_the_project_takes(jobs, project, whole):
    (torch,) = [package for package in project["project"]["dependencies"] if package.startswith("torch>")]
    for lines in (whole, *map(commands, jobs.values())):
        assert sum(f'pip install "{torch}"' in line.replace(" -q", "") for line in lines) == 1


def test_the_oldest_python_is_the_oldest_that_the_project_takes(jobs, project):
    pythons = jobs["fast"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == project["project"]["requires-python"]
    assert all(isinstance(python, str) for python in pythons)  # else YAML would read 3.10 as 3.1


def test_jobs_end_and_their_parts_are_pinned(jobs):
    for job in jobs.values():
        assert job["timeout-minutes"] <= 30
        assert re.fullmatch(r"ubuntu-\d\d\.\d\d", job["runs-on"])
        actions = [step for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", step["uses"]) for step in actions)
        assert actions[-1]["with"]["cache"] == "pip"
