"""ray-align VERB CONFIG.toml [section.field=value ...]"""

from __future__ import annotations

import argparse
import sys
import warnings

from pipeline.config import Config
from pipeline.config.keys import describe_keys
from pipeline.errors import InputError, RunError
from pipeline.run import STAGES, run

EPILOG = """
exit status: 0 done, 1 the run failed, 2 the configuration or the data needs mending

A stage that was done before is not done again. Relative paths in the TOML are relative to it.
Example: ray-align run examples/quickstart.toml loss.beta=0.05 run.name=softer
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "ray-align",
        usage="%(prog)s VERB CONFIG.toml [section.field=value ...]",
        description="Preference alignment on Ray: a cached reference, DeepSpeed ZeRO training, exact order.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = ("run", *STAGES, "doctor", "config", "cache")
    about = (
        "run: every stage; a stage: all up to it; doctor: what will hurt, before anything is trained; "
        "config: print what applies; cache: see `ray-align cache --help`"
    )
    parser.add_argument("verb", choices=verbs, help=about)
    parser.add_argument("config", help="a TOML file")
    parser.add_argument("--keys", action=_Keys, nargs=0, help="list every key with its default, and stop")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="replace values of the file"
    )
    parser.add_argument(
        "--fail-on", choices=("note", "warning", "error"), help="doctor: exit status 1 where it finds so bad a thing"
    )
    words = sys.argv[1:] if arguments is None else arguments
    given = (
        _cache_parser().parse_intermixed_args(words[1:])
        if words[:1] == ["cache"]
        else parser.parse_intermixed_args(words)
    )
    try:
        return _obey(given)
    except InputError as error:
        print(f"ray-align: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(
            f"ray-align: the run failed: {error}\nRay's logs are in the run's folder (ray.log) and in "
            "/tmp/ray/session_latest/logs; report.ray_logs=true shows them as they come.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"ray-align: the run failed: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ray-align: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _cache_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ray-align cache",
        usage="%(prog)s {ls,verify,gc} CONFIG.toml [options] [section.field=value ...]",
        description="Look after the cached reference log-probs of a configuration's workspace (reference.cache).",
        epilog="Compact and remove while no run reads the cache: one that does stops, and goes on when run again.",
    )
    about = (
        "ls: references, sizes, last use; verify: score random sequences of this configuration again and compare; "
        "gc: merge small parts and repeated rows, drop damaged parts"
    )
    parser.add_argument("action", choices=("ls", "verify", "gc"), help=about)
    parser.add_argument("config", help="a TOML file")
    parser.add_argument("--rows", type=int, default=100, help="verify: how many sequences (100)")
    parser.add_argument("--unused-days", type=float, help="gc: also remove references not used for so many days")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="as for `ray-align run`"
    )
    parser.set_defaults(verb="cache")
    return parser


class _Keys(argparse.Action):
    """Like --help: says its piece and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(describe_keys())
        parser.exit()


def _obey(given: argparse.Namespace) -> int:
    config = Config.load(given.config, given.overrides)
    if given.verb == "config":
        print(config.model_dump_json(indent=2))
        return 0
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if given.verb == "doctor":
        return _examine(config, given.fail_on)
    if given.verb == "cache":
        _look_after_cache(config, given)
        return 0
    run(config, "export" if given.verb == "run" else given.verb)
    return 0


def _examine(config: Config, fail_on: str | None) -> int:
    from pipeline.doctor.findings import SEVERITIES
    from pipeline.doctor.page import print_report
    from pipeline.doctor.visit import examine
    from pipeline.report.terminal import Terminal

    report = examine(config)
    print_report(Terminal().console, report)
    if fail_on is None or report.worst is None or SEVERITIES.index(report.worst) < SEVERITIES.index(fail_on):
        return 0
    print(f"ray-align: the doctor found at least one {report.worst} (--fail-on {fail_on})", file=sys.stderr)
    return 1


def _look_after_cache(config: Config, given: argparse.Namespace) -> None:
    from pipeline import upkeep
    from pipeline.place import Place

    place = Place.of(config)
    if given.action == "ls":
        upkeep.ls(place)
    elif given.action == "verify":
        upkeep.verify(place, given.rows)
    else:
        upkeep.gc(place, given.unused_days)
