"""The options of the verbs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.config.recipes import PROGRAMS
from pipeline.config.sections import TRIAL_PAIRS
from pipeline.models.cards import CARDS


class Option(NamedTuple):
    name: str
    metavar: str
    help: str
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    default: int | float | str | None = None
    dest: str | None = None  # None: by its name


class Argument(NamedTuple):
    """A word that must be given behind CONFIG.toml."""

    name: str
    metavar: str
    help: str


class Flag(NamedTuple):
    """An option without a value."""

    name: str
    help: str
    action: str = "store_true"


# What options take


def _sequences(text: str) -> int:
    return _number(text, "sequences")


def _runs(text: str) -> int:
    return _number(text, "runs")


def _devices(text: str) -> int:
    return _number(text, "devices")


def _tokens(text: str) -> int:
    return _number(text, "tokens")


def _temperature(text: str) -> float:
    return _at_least_0(text, "temperature", "0.7")


def _number(text: str, what: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {what}; give a whole number from 1")
    return int(text)


def _days(text: str) -> float:
    return _at_least_0(text, "number of days", "90 or 0.5")


def _at_least_0(text: str, what: str, such_as: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}; give a number from 0, such as {such_as}")
    return value


FAIL_ON = Option(
    "--fail-on",
    "SEVERITY",
    "exit with status 1 if a finding is at least this severe: note, warning or error "
    "(default: unset, findings do not change the exit status)",
    choices=("note", "warning", "error"),
)
CARD = Option(
    "--card",
    "NAME",
    f"model of the GPUs that the run will have, for memory and time: {', '.join(CARDS)} "
    "(default: this machine's GPU; without one, memory is not compared)",
    choices=tuple(CARDS),
)
ROWS = Option("--rows", "N", "how many cached sequences to score again (default: 100)", _sequences, default=100)
RESTART = Flag(
    "--restart",
    "begin anew where run.name was used before, with other settings or data: its export and weights are kept under "
    "earlier/ in the run's folder, its checkpoints are removed (default: unset, the run goes on, or is refused)",
)
TRIAL = Flag(
    "--trial",
    f"a first try, on {TRIAL_PAIRS} pairs (or run.trial, where that is set) and at most as many held out, as a run of "
    "its own: run.name with -trial behind it (default: unset, all pairs)",
)
UNUSED_DAYS = Option(
    "--unused-days",
    "DAYS",
    "also remove the log-probs of models that were not used for more than so many days "
    "(default: unset, nothing is removed for its age)",
    _days,
)
RECIPE = (
    Option("--model", "MODEL", "a folder or Hub name (default: unset, that of --from)"),
    Option("--data", "DATA", "a file, folder, pattern, URI or Hub name (default: unset, that of --from)"),
    Option("--eval", "DATA", "held-out pairs, or the fraction to hold out (default: unset, that of --from)"),
    Option(
        "--from",
        "RECIPE",
        "a YAML file of TRL, Axolotl or LLaMA-Factory, or a script with flags of TRL or OpenRLHF (default: unset)",
        dest="source",
    ),
    Option("--program", "NAME", "whose recipe it is (default: told by its words)", choices=PROGRAMS),
    Option("--devices", "N", "devices that the recipe was run on (default: 1 device)", _devices, default=1),
)
RANDOM = Option(
    "--random",
    "N",
    "train N of the combinations, drawn by run.seed, none twice (default: unset, all of them)",
    _runs,
)
RUNS = Option("--dir", "DIR", "the folder that names of runs are looked up in (default: runs)", default="runs")
HTML = Option("--html", "FILE", "also write a page with their curves over one another (default: unset, no page)")
CHAT = (
    Option(
        "--show",
        "WHICH",
        "whose answers: after, before or both, of training (default: both on a terminal; after where lines come from a "
        "pipe or answers go to one)",
        choices=("after", "before", "both"),
    ),
    Option(
        "--temperature",
        "T",
        "0 takes the likeliest token each time, 1 draws by the model's own probabilities, between them the likely ones "
        "come oftener (default: 0)",
        _temperature,
        default=0.0,
    ),
    Option("--max-tokens", "N", "the longest answer, in tokens (default: 256 tokens)", _tokens, default=256),
)
REPOSITORY = Argument("repository", "ORG/NAME", "the repository on the Hub; it is made where there is none")
PUBLIC = Flag("--public", "let everybody see the repository (default: unset, a new one is private)")
