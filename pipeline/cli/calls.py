"""The functions that the verbs of the command line call. Each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import shlex
import sys

from pipeline.config import Config
from pipeline.errors import visible
from pipeline.run import STAGES, run


def run_stages(config: Config, given: argparse.Namespace) -> int:
    until = STAGES[-1] if given.verb == "run" else given.verb
    run(config.as_trial() if given.trial else config, until, given.restart)
    return 0


def init(given: argparse.Namespace) -> int:
    from pipeline.cli.init import init

    return init(given)


def sweep(given: argparse.Namespace) -> int:
    from pipeline.cli.sweep import sweep

    return sweep(given)


def compare(given: argparse.Namespace) -> int:
    from pipeline.cli.compare import compare

    return compare(given)


def unread(_: Config, __: argparse.Namespace) -> int:
    raise AssertionError("this verb does not read one configuration")


def examine(config: Config, given: argparse.Namespace) -> int:
    from pipeline.doctor.findings import SEVERITIES
    from pipeline.doctor.page import print_report
    from pipeline.doctor.visit import examine
    from pipeline.report.terminal import Terminal

    report = examine(config, given.card)
    print_report(Terminal().console, report)
    fail_on, worst = given.fail_on, report.worst
    if fail_on is None or worst is None or SEVERITIES.index(worst) < SEVERITIES.index(fail_on):
        return 0
    print(f"ray-align: the doctor found at least one {worst} (--fail-on {fail_on})", file=sys.stderr)
    return 1


def print_config(config: Config, _: argparse.Namespace) -> int:
    from pipeline.cluster.machine import settled

    print(visible(settled(config).model_dump_json(indent=2)))  # whose escapes are JSON's own
    return 0


def chat(config: Config, given: argparse.Namespace) -> int:
    from pipeline.finished.chat import chat

    chat(config, given.show, given.temperature, given.max_tokens, _run_of(given))
    return 0


def push(config: Config, given: argparse.Namespace) -> int:
    from pipeline.finished.push import push

    push(config, given.repository, given.public, _run_of(given))
    return 0


def _run_of(given: argparse.Namespace) -> str:
    """The command that makes, or finishes, the run of a command line."""
    return f"ray-align run {shlex.join([given.config, *given.overrides])}"


def list_cache(config: Config, _: argparse.Namespace) -> int:
    from pipeline import upkeep
    from pipeline.place import Place

    upkeep.ls(Place.of(config))
    return 0


def verify_cache(config: Config, given: argparse.Namespace) -> int:
    from pipeline import upkeep
    from pipeline.cluster.machine import settled
    from pipeline.place import Place

    upkeep.verify(Place.of(settled(config)), given.rows)
    return 0


def tidy_cache(config: Config, given: argparse.Namespace) -> int:
    from pipeline import upkeep
    from pipeline.place import Place

    upkeep.gc(Place.of(config), given.unused_days)
    return 0
