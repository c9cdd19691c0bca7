"""ray-align VERB CONFIG.toml [options] [section.field=value ...]"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from pipeline.cli.verbs import CACHE, VERBS, Flag, Option, Verb
from pipeline.cluster.signals import Sigterm
from pipeline.config import Config
from pipeline.config.hints import ALIKE, of_flag
from pipeline.config.keys import describe_keys
from pipeline.config.read import YAML
from pipeline.errors import Diverged, InputError, RunError, Unreachable, visible

USAGE = """%(prog)s VERB CONFIG.toml [options] [section.field=value ...]
       %(prog)s VERB --help
       %(prog)s --keys [SECTION ...]
       %(prog)s --version
       %(prog)s --env
       %(prog)s --completion SHELL"""
ABOUT = "Preference alignment on Ray: a cached reference, DeepSpeed ZeRO training, exact order."
NOTES = """A stage runs all stages before it first; one that was done before is not done again. Relative
paths in the TOML are relative to it. Every verb has its own help: ray-align VERB --help

"""
EXAMPLE = "ray-align run examples/quickstart.toml loss.beta=0.05 run.name=softer"
STATUSES = """exit status:
  0    done
  1    {failure}
  2    the command line, the configuration or the data needs mending
  130  interrupted (143: by SIGTERM); run the same command to continue
"""
KEYS_HELP = "list every key of the configuration with its default, or those of these sections alone, and exit"
COMPLETION_HELP = "print the script that completes words in a shell (bash, zsh or fish), and exit"
# The options that need no verb, and those of the verbs.
HOMES = {
    "--keys": "ray-align",
    "--version": "ray-align",
    "--env": "ray-align",
    "--completion": "ray-align",
    **{option.name: f"ray-align {name}" for name, verb in reversed(VERBS.items()) for option in verb.options},
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    sigterm = Sigterm()
    sigterm.heed()
    verb = VERBS[given.verb]
    try:
        if verb.alone is not None:
            return verb.alone(given)
        return verb.act(Config.load(given.config, given.overrides), given)
    except InputError as error:
        return _end(str(error), 1 if isinstance(error, Diverged | Unreachable) else 2)
    except RunError as error:
        more = f" and in {error.logs}" if error.logs is not None else ""
        logs = f"Ray's logs are in the run's folder (ray.log){more}; report.ray_logs=true shows them as they come."
        return _end(f"the run failed: {error}\n{logs}", 1)
    except OSError as error:
        return _end(f"the run failed: {error.strerror or error}: {error.filename or ''}", 1)
    except KeyboardInterrupt:
        return _end(verb.stopped, 143 if sigterm.came else 130)


def _end(said: str, status: int) -> int:
    """Say why the program ends, in place of the live line, and return its exit status."""
    clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{clear}ray-align: {visible(said)}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that shows words of the command line as they are."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def _parse(words: list[str]) -> argparse.Namespace:
    """Find the verb's parser by the first word or two, and let it read the others.

    Below a parser of several verbs, argparse takes no overrides on both sides of an option; a verb's own parser does.
    """
    parsers = _parsers()
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in parsers), "")
    parser, rest = parsers[name], words[len(name.split()) :]
    if name not in VERBS:
        verbs = [verb for verb in parsers if verb and verb.rpartition(" ")[0] == name]
        _without_verb(parser, [verb.split()[-1] for verb in verbs], rest)
    given, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        _refuse_option(parser, next((word for word in unknown if word.startswith("-")), unknown[0]), rest)
    if given.config is None:
        parser.error(f"the following arguments are required: {VERBS[name].words.first}")
    argument = VERBS[name].argument
    if argument is not None and "=" in (getattr(given, argument.name) or "="):
        parser.error(f"{argument.metavar} is missing behind {given.config}: {argument.help}")
    return given


def _without_verb(parser: argparse.ArgumentParser, verbs: list[str], words: list[str]) -> NoReturn:
    """Obey an option that needs no verb; otherwise say what the first word should have been."""
    word = words[0] if words else ""
    if not words and parser.prog == "ray-align":
        parser.print_help()
        parser.exit()
    if word in ("-h", "--help") or HOMES.get(word.partition("=")[0]) == parser.prog:
        parser.parse_args(words)
    if word.startswith("-"):
        _refuse_option(parser, word, words)
    listed = f"(choose from {', '.join(verbs)})"
    if not words:
        parser.error(f"the verb is missing {listed}")
    if word.endswith((".toml", *YAML)) or Path(word).is_file():
        parser.error(f"the verb before {word} is missing; write for example {parser.prog} {verbs[0]} {word} {listed}")
    if HOMES.get(f"--{word}") == parser.prog:
        parser.error(f"{word} is an option: {parser.prog} --{word}")
    close = difflib.get_close_matches(word, verbs, 1)
    parser.error(f"invalid choice: {word!r}{f'; did you mean {close[0]!r}?' if close else ''} {listed}")


def _refuse_option(parser: argparse.ArgumentParser, word: str, words: list[str]) -> NoReturn:
    """Name the option, and where it belongs, which one may have been meant, or which key of the configuration."""
    option, _, value = word.partition("=")
    behind = words[words.index(word) + 1 :] if word in words else []
    close = difflib.get_close_matches(option, HOMES, 1, ALIKE)
    key = of_flag(Config, option, value or next((w for w in behind[:1] if not w.startswith("--")), ""))
    if HOMES.get(option) == "ray-align":
        advice = f"it stands without a verb: ray-align {option}"
    elif option in HOMES and (key is None or HOMES[option] != "ray-align init"):
        advice = f"it belongs to {HOMES[option]}"
    elif key is not None:
        advice = key
    elif close:
        advice = f"did you mean {HOMES[close[0]]} {close[0]}?"
    else:
        advice = f"see {parser.prog} --help"
    parser.error(f"{parser.prog} has no option {option}; {advice}")


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """One parser a verb, by the words that call it; "" and "cache" are those of a command line without a verb."""
    top = _Parser("ray-align", usage=USAGE, **_texts(ABOUT, NOTES, "the run failed", EXAMPLE))
    verbs = top.add_subparsers(title="verbs", prog="ray-align")
    plain = {name: _add(verbs, name, verb) for name, verb in VERBS.items() if " " not in name}
    texts = _texts(_sentence(CACHE), "", "the cache could not be read or written", "ray-align cache ls my.toml")
    usage = "%(prog)s VERB CONFIG.toml [options] [section.field=value ...]"
    cache = verbs.add_parser("cache", usage=usage, help=CACHE, **texts)
    verbs = cache.add_subparsers(title="verbs", prog="ray-align cache")
    below = {name: _add(verbs, name, verb) for name, verb in VERBS.items() if " " in name}
    _options(cache)
    options = _options(top)
    options.add_argument("--keys", action=_Keys, nargs="*", metavar="SECTION", help=KEYS_HELP)
    options.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    options.add_argument("--env", action=_Environment, nargs=0, help="print versions and machine, for a bug report")
    options.add_argument("--completion", action=_Completion, nargs=1, metavar="SHELL", help=COMPLETION_HELP)
    return {"": top, **plain, "cache": cache, **below}


def _add(verbs: Any, name: str, verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb."""
    usage = f"{verb.argument.metavar} " if verb.argument is not None else ""
    usage += "".join(f"[{option.name} {option.metavar}] " for option in verb.options if isinstance(option, Option))
    flags = "".join(f" [{option.name}]" for option in verb.options if isinstance(option, Flag))
    parser: argparse.ArgumentParser = verbs.add_parser(
        name.split()[-1],
        usage=f"%(prog)s {verb.words.first} {usage}[{verb.words.others} ...]{flags}",
        help=verb.line,
        **_texts(f"{_sentence(verb.line)}\n\n{verb.about}", "", verb.failure, f"ray-align {name} {verb.example}"),
    )
    arguments = parser.add_argument_group("arguments")
    words = verb.words
    arguments.add_argument("config", nargs="?", metavar=words.first, help=words.about_first)
    if verb.argument is not None:
        argument = verb.argument
        arguments.add_argument(argument.name, nargs="?", metavar=argument.metavar, help=argument.help)
    arguments.add_argument("overrides", nargs="*", default=[], metavar=words.others, help=words.about_others)
    options = _options(parser)
    for option in verb.options:
        settings = {key: value for key, value in option._asdict().items() if key != "name"}
        settings = {key: value for key, value in settings.items() if key != "dest" or value is not None}
        options.add_argument(option.name, **settings)
    parser.set_defaults(verb=name)
    return parser


def _options(parser: argparse.ArgumentParser) -> Any:
    """The group of options, below what stands before them on the command line."""
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this help and exit")
    return options


def _texts(about: str, notes: str, failure: str, example: str) -> dict[str, Any]:
    """The arguments that every parser is constructed with."""
    return {
        "description": about,
        "epilog": f"{notes}{STATUSES.format(failure=failure)}\nexample:\n  {example}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "add_help": False,
        "allow_abbrev": False,
    }


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


class _Keys(argparse.Action):
    """Like --help: says its piece and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, sections: Any, option: str | None = None) -> None:
        for section in sections:
            if section not in Config.model_fields:
                parser.error(f"there is no section {section!r} (choose from {', '.join(Config.model_fields)})")
        print(describe_keys(sections or Config.model_fields))
        parser.exit()


class _Version(argparse.Action):
    """The same, with the version; argparse's own action would look it up for every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print(f"ray-align {importlib.metadata.version('ray-align')}")
        except importlib.metadata.PackageNotFoundError:
            parser.error("ray-align is not installed, so its version is unknown; install it with pip install -e .")
        parser.exit()


class _Environment(argparse.Action):
    """The same, with what a bug report needs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pipeline.cli.environment import environment

        print(environment())
        parser.exit()


class _Completion(argparse.Action):
    """The same, with a script for a shell."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, given: Any, option: str | None = None) -> None:
        from pipeline.cli.completion import SHELLS, completion

        if given[0] not in SHELLS:
            parser.error(f"argument {option}: invalid choice: {given[0]!r} (choose from {', '.join(SHELLS)})")
        try:
            print(completion(parser, given[0]))
        except InputError as error:
            parser.exit(2, f"ray-align: {error}\n")
        parser.exit()
