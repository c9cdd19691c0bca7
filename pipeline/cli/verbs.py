"""The verbs of the command line: what each calls, its options, and what its help says."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import NamedTuple

from pipeline.cli.options import (
    CARD,
    CHAT,
    FAIL_ON,
    PUBLIC,
    RECIPE,
    REPOSITORY,
    RESTART,
    ROWS,
    TRIAL,
    UNUSED_DAYS,
    Argument,
    Flag,
    Option,
)
from pipeline.config import Config
from pipeline.errors import visible
from pipeline.run import STAGES, run


class Verb(NamedTuple):
    """A verb: its line in the list of verbs, the function that it calls, and the rest of its own help."""

    line: str
    act: Callable[[Config, argparse.Namespace], int]  # returns the exit status
    about: str
    example: str
    failure: str = "the run failed"  # what exit status 1 means
    options: tuple[Option | Flag, ...] = ()
    writes: Callable[[argparse.Namespace], int] | None = None  # where CONFIG.toml is written, and not read
    argument: Argument | None = None
    stopped: str = "stopped; run the same command to continue"  # what is said after Ctrl-C


# What each verb calls


def _run(config: Config, given: argparse.Namespace) -> int:
    until = STAGES[-1] if given.verb == "run" else given.verb
    run(config.as_trial() if given.trial else config, until, given.restart)
    return 0


def _init(given: argparse.Namespace) -> int:
    from pipeline.cli.init import init

    return init(given)


def _unread(_: Config, __: argparse.Namespace) -> int:
    raise AssertionError("this verb reads no configuration")


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


def _chat(config: Config, given: argparse.Namespace) -> int:
    from pipeline.finished.chat import chat

    chat(config, given.show, given.temperature, given.max_tokens, _run_of(given))
    return 0


def _push(config: Config, given: argparse.Namespace) -> int:
    from pipeline.finished.push import push

    push(config, given.repository, given.public, _run_of(given))
    return 0


def _run_of(given: argparse.Namespace) -> str:
    """The command that makes, or finishes, the run of a command line."""
    return f"ray-align run {shlex.join([given.config, *given.overrides])}"


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
    "init": Verb(
        "write a configuration for your data and your model",
        _unread,
        "It looks at the data, the model and the memory of this machine, and writes CONFIG.toml\n"
        "with the lengths and batches that fit. What a recipe says and cannot be said here is\n"
        "named, in the file and on the terminal.",
        "my.toml --model org/model --data pairs.jsonl --eval 0.05",
        "the file could not be written",
        RECIPE,
        _init,
    ),
    "chat": Verb(
        "ask a finished run's model, before and after training",
        _chat,
        "Each line, typed or from a pipe, is answered: with the chat template where the run's data\n"
        "are messages, else as plain text. /new forgets what was said, /quit or Ctrl-D ends. A\n"
        "pipe gets the answers alone. The run's folder may stand in place of CONFIG.toml.",
        "my.toml --max-tokens 40",
        "the model could not be loaded or asked",
        CHAT,
        stopped="stopped",
    ),
    "push": Verb(
        "upload a finished run's model to the Hugging Face Hub",
        _push,
        "The exported folder is uploaded with its model card. The token is that of hf auth login,\n"
        "or HF_TOKEN. The run's folder may stand in place of CONFIG.toml.",
        "my.toml org/name",
        "the Hub could not be reached",
        (PUBLIC,),
        argument=REPOSITORY,
        stopped="stopped; run the same command to upload the rest",
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
