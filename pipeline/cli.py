"""ray-align VERB CONFIG.toml [section.field=value ...]"""

from __future__ import annotations

import argparse
import sys
import warnings

from pipeline.config import Config
from pipeline.errors import InputError, RunError
from pipeline.keys import describe_keys
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
    verbs = ("run", *STAGES, "config")
    parser.add_argument(
        "verb", choices=verbs, help="run: every stage; a stage: all up to it; config: print what applies"
    )
    parser.add_argument("config", help="a TOML file")
    parser.add_argument("--keys", action=_Keys, nargs=0, help="list every key with its default, and stop")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="replace values of the file"
    )
    given = parser.parse_args(arguments)
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
    run(config, "export" if given.verb == "run" else given.verb)
    return 0
