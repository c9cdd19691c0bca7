"""The verbs of the command line: their options, and what their help says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from pipeline.cli import calls
from pipeline.cli.options import (
    CARD,
    CHAT,
    FAIL_ON,
    HTML,
    PUBLIC,
    RANDOM,
    RECIPE,
    REPOSITORY,
    RESTART,
    ROWS,
    RUNS,
    TRIAL,
    UNUSED_DAYS,
    Argument,
    Flag,
    Option,
)
from pipeline.config import Config
from pipeline.run import STAGES


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
CONFIG_HELP = "the configuration, a TOML or YAML file; a run's folder stands for the settings that it keeps"
CONFIG = Words("CONFIG.toml", CONFIG_HELP, "section.field=value", OVERRIDES_HELP)
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
    argument: Argument | None = None
    stopped: str = "stopped; run the same command to continue"  # what is said after Ctrl-C


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
    return Verb(line, calls.run_stages, f"{about}\n\n{first}{SKIPPED}", example, options=(RESTART, TRIAL))


CACHE = "list, verify or tidy the cached log-probs"
CACHE_PLACE = "The cache is at reference.cache, or in the workspace where that is unset."

# By the words that call them.
VERBS = {
    "run": Verb(
        "run every stage, up to the exported model",
        calls.run_stages,
        f"The stages are {', '.join(STAGES)}.\n{SKIPPED}",
        "examples/quickstart.toml loss.beta=0.05 run.name=softer",
        options=(RESTART, TRIAL),
    ),
    **{name: _stage(name) for name in STAGES},
    "doctor": Verb(
        "find what would hurt a run, before anything is trained",
        calls.examine,
        "It prepares the data as a run does, without a GPU and without the model's weights, and\n"
        "looks at the data, the chat template and the configuration. It writes doctor.html,\n"
        "doctor.json and rejected.jsonl to the folder doctor/ in the run's folder.",
        "my.toml --fail-on warning --card H100",
        "the doctor failed, or found something as bad as --fail-on says",
        (FAIL_ON, CARD),
    ),
    "sweep": Verb(
        "train a run for each combination of several values",
        calls.unread,
        "The runs share tokens and reference log-probs, so that another loss or learning rate costs\n"
        "only its training. Each is a run by a name of its own. A table of all, best first, is\n"
        "printed and written beside their folders. The same command skips what is finished.",
        "my.toml loss.beta=0.05,0.1,0.5 train.learning_rate=1e-6,5e-6 --random 4",
        "at least one of the runs failed",
        (RANDOM,),
        calls.sweep,
        SEVERAL,
    ),
    "compare": Verb(
        "show in what runs differ, and their results",
        calls.unread,
        "The settings in which the runs differ, their results side by side, and what is missing of\n"
        "runs that are not finished. Nothing but the runs' folders is read.",
        "quickstart softer --dir examples/runs --html compared.html",
        "the page could not be written",
        (RUNS, HTML),
        calls.compare,
        OF_RUNS,
    ),
    "init": Verb(
        "write a configuration for your data and your model",
        calls.unread,
        "It looks at the data, the model and the memory of this machine, and writes CONFIG.toml\n"
        "with the lengths and batches that fit. On a terminal it asks for what is missing. What a\n"
        "recipe says and cannot be said here is named, in the file and on the terminal.",
        "my.toml --model org/model --data pairs.jsonl --eval 0.05",
        "the file could not be written",
        RECIPE,
        calls.init,
    ),
    "chat": Verb(
        "ask a finished run's model, before and after training",
        calls.chat,
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
        calls.push,
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
        calls.print_config,
        "The settings are the defaults, the file and the overrides together, with absolute paths.\n"
        'Nothing but the file is read (for deepspeed.stage = "auto" also the model\'s config.json,\n'
        "and what the run of this name began with), and nothing is written.",
        "my.toml loss.beta=0.05",
        "the settings could not be printed",
    ),
    "cache ls": Verb(
        "list what is cached, with sizes and last use",
        calls.list_cache,
        f"There is one line for every model whose log-probs are cached.\n{CACHE_PLACE}",
        "my.toml",
        "the cache could not be read",
    ),
    "cache verify": Verb(
        "score random sequences again, and compare",
        calls.verify_cache,
        "The sequences are those of this configuration that are cached. Its data is prepared\n"
        f"first, and its [sft] trained, where that was not done before.\n{CACHE_PLACE}",
        "my.toml --rows 1000",
        "the cache could not be read, or holds other log-probs than the model gives",
        (ROWS,),
    ),
    "cache gc": Verb(
        "merge small parts and repeated rows, drop damaged parts",
        calls.tidy_cache,
        "Run it only while no run uses the cache. A run that does will stop; start it again to\n"
        f"continue. {CACHE_PLACE}",
        "my.toml --unused-days 90",
        "the cache could not be read or written",
        (UNUSED_DAYS,),
    ),
}
