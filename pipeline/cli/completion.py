"""The parsers of the command line -> a script that completes it in a shell: verbs, options, files, keys with defaults.

The script is static, so that a shell starts no Python when somebody presses Tab.
"""

from __future__ import annotations

import argparse
import shlex
from importlib.util import find_spec
from typing import Any

from pipeline.config import Config
from pipeline.config.keys import values_of_keys
from pipeline.errors import InputError

SHELLS = ("bash", "zsh", "fish")
FILES = ("*.toml", "*.yaml", "*.yml")
COMPLETE_KEYS = "_ray_align_keys"
# A key is completed up to its "=", a key with its "=" by its values, the default first.
BASH = """\
declare -A _ray_align_values=({bash})
_ray_align_keys() {{
  local word="$1" key="" before="" at
  if [[ "${{COMP_WORDS[COMP_CWORD]}}" == "=" ]]; then
    key="${{COMP_WORDS[COMP_CWORD-1]}}" word=""
  elif [[ "${{COMP_WORDS[COMP_CWORD-1]}}" == "=" ]]; then
    key="${{COMP_WORDS[COMP_CWORD-2]}}"
  elif [[ "$word" == *=* ]]; then
    key="${{word%%=*}}" before="${{word%%=*}}="
  fi
  if [[ -z "$key" ]]; then
    compopt -o nospace 2>/dev/null
    for at in "${{!_ray_align_values[@]}}"; do
      [[ "$at" == "$word"* ]] && printf '%s=\\n' "$at"
    done
  else
    for at in ${{_ray_align_values["$key"]-}}; do
      [[ "$before$at" == "$word"* ]] && printf '%s\\n' "$before$at"
    done
  fi
}}"""
ZSH = """\
_ray_align_keys() {{
  local -A values=({zsh})
  if [[ "$PREFIX" == *=* ]]; then
    local key="${{PREFIX%%=*}}"
    compadd -- "$key="${{^=values[$key]}}
  else
    compadd -S '' -- "${{(@k)^values}}="
  fi
}}"""
FISH = """\
function _ray_align_keys
  printf '%s\\n' {fish}
end"""


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell. The parser is marked, so it is not used afterwards.

    Raises:
        InputError: the library that writes such scripts is not installed.
    """
    if find_spec("shtab") is None:
        raise InputError('--completion needs shtab, which is not installed: pip install -e ".[completion]"')
    import shtab  # pyright: ignore[reportMissingImports]

    keys = _of_keys(values_of_keys(Config))
    for verb in _verbs(parser):
        for action in verb._actions:
            if action.metavar == "CONFIG.toml":
                action.complete = shtab.glob(*FILES)  # type: ignore[attr-defined]
            elif action.metavar == "section.field=value":
                action.complete = keys  # type: ignore[attr-defined]
    script = shtab.complete(parser, shell)
    return script.replace('"(*)::', '"*:') if shell == "zsh" else script  # else zsh completes one override alone


def _of_keys(values: dict[str, list[str]]) -> dict[str, Any]:
    """The completion of a word as shtab takes it: for each shell the call that lists values, and its functions."""
    words = {key: " ".join(value for value in found if " " not in value) for key, found in values.items()}
    fish = [f"{key}=\t{found[0] if found else 'unset'}" for key, found in values.items()]
    fish += [f"{key}={value}" for key, found in values.items() for value in found]
    preamble = {
        "bash": BASH.format(bash=" ".join(f"[{key}]={shlex.quote(found)}" for key, found in words.items())),
        "zsh": ZSH.format(zsh=" ".join(f"{key} {shlex.quote(found)}" for key, found in words.items())),
        "fish": FISH.format(fish=" ".join(map(shlex.quote, fish))),
    }
    return {"bash": COMPLETE_KEYS, "zsh": COMPLETE_KEYS, "fish": f"({COMPLETE_KEYS})", "preamble": preamble}


def _verbs(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser, and all below it."""
    below = [a.choices.values() for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [parser, *(found for parsers in below for each in parsers for found in _verbs(each))]
