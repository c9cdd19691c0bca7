"""The verbs of the command line: what each calls, its options, and what its help says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple

from pipeline.cli.options import (
    CARD,
    FAIL_ON,
    HTML,
    RANDOM,
    RECIPE,
    RESTART,
    ROWS,
    RUNS,
    TRIAL,
    UNUSED_DAYS,
    Flag,
    Option,
)
from pipeline.config import Config
from pipeline.errors import visible
from pipeline.run import STAGES, run


class Words(NamedTuple):
    """The words behind a verb: what the first stands for, and those that follow it, with their help."""

    first: str
    about_first: str
    others: str
    about_others: str


OVERRIDES_HELP = (
    "replace a value of the file, for this command alone; null unsets it, and a relative path is relative to the "
    "current folder (ray-align --keys lists every key)"
)
CONFIG = Words("CONFIG.toml", "the configuration, a TOML or YAML file", "section.field=value", OVERRIDES_HELP)
SEVERAL = CONFIG._replace(
    others="section.field=value,value",
    about_others="values to try; a key with a single one has it in all runs (ray-align --keys lists every key)",
)
OF_RUNS = Words("RUN", "the folder of a run or of a sweep, or its name", "RUN", "the runs to compare it with")


class Verb(NamedTuple):
    """A verb: its line in the list of verbs, the function that it calls, and the rest of its own help."""

    line: str
    act: Callable[[Config, argparse.Namespace], int]  # returns the exit status
    about: str
    example: str
    failure: str = "the run failed"  # what exit status 1 means
    options: tuple[Option | Flag, ...] = ()
    alone: Callable[[argparse.Namespace], int] | None = None  # in place of act, where not one configuration is loaded
    words: Words = CONFIG


# What each verb calls


def _run(config: Config, given: argparse.Namespace) -> int:
    until = STAGES[-1] if given.verb == "run" else given.verb
    run(config.as_trial() if given.trial else config, until, given.restart)
    return 0


def _init(given: argparse.Namespace) -> int:
    from pipeline.cli.init import init

    return init(given)


def _sweep(given: argparse.Namespace) -> int:
    from pipeline.cli.sweep import sweep

    return sweep(given)


def _compare(given: argparse.Namespace) -> int:
    from pipeline.cli.compare import compare

    return compare(given)


def _unread(_: Config, __: argparse.Namespace) -> int:
    raise AssertionError("this verb does not read one configuration")


def _examine(config: Config, given: argparse.Namespace) -> int:
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


def _print_config(config: Config, _: argparse.Namespace) -> int:
    from pipeline.cluster.machine import settled

    print(visible(settled(config).model_dump_json(indent=2)))  # whose escapes are JSON's own
    return 0


def _list_cache(config: Config, _: argparse.Namespace) -> int:
    from pipeline import upkeep
    from pipeline.place import Place

    upkeep.ls(Place.of(config))
    return 0


def _verify_cache(config: Config, given: argparse.Namespace) -> int:
    from pipeline import upkeep
    from pipeline.cluster.machine import settled
    from pipeline.place import Place

    upkeep.verify(Place.of(settled(config)), given.rows)
    return 0


def _tidy_cache(config: Config, given: argparse.Namespace) -> int:
    from pipeline import upkeep
    from pipeline.place import Place

    upkeep.gc(Place.of(config), given.unused_days)
    return 0


# What their help says

SKIPPED = "A stage that was done before is not done again."
STAGE_HELP = {
    "prepare": (
        "turn the preference pairs into token ids",
        "The token ids of data.train and data.eval are kept in the workspace, where other runs\n"
        "find them. Rows that cannot be used are counted, and kept in rejected.jsonl.",
        "my.toml data.max_length=2048",
    ),
    "sft": (
        "train on the answers first, if sft.epochs > 0",
        "The trained policy is kept in the workspace, and is the reference of what follows. By\n"
        "default sft.epochs is 0, and the stage does nothing.",
        "my.toml sft.epochs=1",
    ),
    "score": (
        "compute the reference's log-probs, or reuse them",
        "Only what the cache lacks is computed. A loss without a reference needs no log-probs.",
        "my.toml reference.actors=2",
    ),
    "order": (
        "write every epoch in the order of training",
        "The epochs are kept in the run's folder, with the reference's log-probs.",
        "my.toml train.epochs=2",
    ),
    "train": (
        "train the policy on the preference pairs",
        "Weights, checkpoints and metrics are kept in the run's folder. A training that was\n"
        "stopped goes on from its last checkpoint.",
        "my.toml loss.beta=0.05 run.name=softer",
    ),
    "evaluate": (
        "measure the policy on the held-out pairs",
        "Their prompts are answered too, before and after training, if\n"
        "evaluate.generate_prompts > 0. Without data.eval the stage does nothing.",
        "my.toml evaluate.generate_prompts=20",
    ),
    "export": (
        "write the model to a folder that loads elsewhere",
        "The folder is export/ in the run's folder: weights, config, tokenizer and model card.",
        "my.toml",
    ),
}


def _stage(name: str) -> Verb:
    line, about, example = STAGE_HELP[name]
    before = STAGES[: STAGES.index(name)]
    first = f"The stages before it run first: {', '.join(before)}.\n" if before else ""
    return Verb(line, _run, f"{about}\n\n{first}{SKIPPED}", example, options=(RESTART, TRIAL))


CACHE = "list, verify or tidy the cached log-probs"
CACHE_PLACE = "The cache is at reference.cache, or in the workspace where that is unset."

# By the words that call them.
VERBS = {
    "run": Verb(
        "run every stage, up to the exported model",
        _run,
        f"The stages are {', '.join(STAGES)}.\n{SKIPPED}",
        "examples/quickstart.toml loss.beta=0.05 run.name=softer",
        options=(RESTART, TRIAL),
    ),
    **{name: _stage(name) for name in STAGES},
    "doctor": Verb(
        "find what would hurt a run, before anything is trained",
        _examine,
        "It prepares the data as a run does, without a GPU and without the model's weights, and\n"
        "looks at the data, the chat template and the configuration. It writes doctor.html,\n"
        "doctor.json and rejected.jsonl to the folder doctor/ in the run's folder.",
        "my.toml --fail-on warning --card H100",
        "the doctor failed, or found something as bad as --fail-on says",
        (FAIL_ON, CARD),
    ),
    "sweep": Verb(
        "train a run for each combination of several values",
        _unread,
        "The runs share tokens and reference log-probs, so that another loss or learning rate costs\n"
        "only its training. Each is a run by a name of its own. A table of all, best first, is\n"
        "printed and written beside their folders. The same command skips what is finished.",
        "my.toml loss.beta=0.05,0.1,0.5 train.learning_rate=1e-6,5e-6 --random 4",
        "at least one of the runs failed",
        (RANDOM,),
        _sweep,
        SEVERAL,
    ),
    "compare": Verb(
        "show in what runs differ, and their results",
        _unread,
        "The settings in which the runs differ, their results side by side, and what is missing of\n"
        "runs that are not finished. Nothing but the runs' folders is read.",
        "quickstart softer --dir examples/runs --html compared.html",
        "the page could not be written",
        (RUNS, HTML),
        _compare,
        OF_RUNS,
    ),
    "init": Verb(
        "write a configuration for your data and your model",
        _unread,
        "It looks at the data, the model and the memory of this machine, and writes CONFIG.toml\n"
        "with the lengths and batches that fit. On a terminal it asks for what is missing. What a\n"
        "recipe says and cannot be said here is named, in the file and on the terminal.",
        "my.toml --model org/model --data pairs.jsonl --eval 0.05",
        "the file could not be written",
        RECIPE,
        _init,
    ),
    "config": Verb(
        "print every setting that applies, as JSON",
        _print_config,
        "The settings are the defaults, the file and the overrides together, with absolute paths.\n"
        'Nothing but the file is read (for deepspeed.stage = "auto" also the model\'s config.json,\n'
        "and what the run of this name began with), and nothing is written.",
        "my.toml loss.beta=0.05",
        "the settings could not be printed",
    ),
    "cache ls": Verb(
        "list what is cached, with sizes and last use",
        _list_cache,
        f"There is one line for every model whose log-probs are cached.\n{CACHE_PLACE}",
        "my.toml",
        "the cache could not be read",
    ),
    "cache verify": Verb(
        "score random sequences again, and compare",
        _verify_cache,
        "The sequences are those of this configuration that are cached. Its data is prepared\n"
        f"first, and its [sft] trained, where that was not done before.\n{CACHE_PLACE}",
        "my.toml --rows 1000",
        "the cache could not be read, or holds other log-probs than the model gives",
        (ROWS,),
    ),
    "cache gc": Verb(
        "merge small parts and repeated rows, drop damaged parts",
        _tidy_cache,
        "Run it only while no run uses the cache. A run that does will stop; start it again to\n"
        f"continue. {CACHE_PLACE}",
        "my.toml --unused-days 90",
        "the cache could not be read or written",
        (UNUSED_DAYS,),
    ),
}
