"""Overrides, some of which list several values -> one set of overrides for each combination of them."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.config.hints import kinds_of
from pipeline.config.overrides import Override, overrides_of
from pipeline.config.read import is_toml
from pipeline.errors import ConfigError

EXAMPLE = "loss.beta=0.05,0.1"
# Keys that are one for all runs of a sweep.
SHARED = {"run.name", "run.dir", "run.workspace", "reference.cache", "cluster.address"}
LONGEST_VALUE, LONGEST_NAME, DIGITS = 32, 200, 8  # characters; a folder's name holds 255 bytes
OPENING, CLOSING = "([{", ")]}"


class Swept(NamedTuple):
    """A key with several values, as they were written."""

    key: str
    values: list[str]


class Grid(NamedTuple):
    """Every combination of the values of swept keys; the values of the last key change first."""

    fixed: list[str]  # overrides of all combinations
    swept: list[Swept]

    @property
    def size(self) -> int:
        return math.prod(len(key.values) for key in self.swept)

    @property
    def keys(self) -> list[str]:
        return [key.key for key in self.swept]

    def words(self, number: int) -> list[str]:
        """The overrides of one combination, from 0, that are its own."""
        sizes = [len(key.values) for key in self.swept]
        behind = [self.size // before for before in accumulate(sizes, lambda a, b: a * b)]
        places = [(number // rest) % size for rest, size in zip(behind, sizes, strict=True)]
        return [f"{of.key}={of.values[at]}" for of, at in zip(self.swept, places, strict=True)]

    def edges(self) -> list[int]:
        """Combinations in which every value comes up: the first, and those that differ from it in one key."""
        found, behind = [0], self.size
        for key in self.swept:
            behind //= len(key.values)
            found += [behind * at for at in range(1, len(key.values))]
        return found

    def drawn(self, count: int, seed: int) -> list[int]:
        """Draw `count` combinations, none of them twice, in the order of the grid; all where it has no more."""
        return sorted(random.Random(seed).sample(range(self.size), min(count, self.size)))


def read_grid(model: type[BaseModel], words: Sequence[str]) -> Grid:
    """Tell which overrides list several values.

    Raises:
        ConfigError: none does, one lists a value twice, or its key cannot be swept.
    """
    fixed: list[str] = []
    swept: list[Swept] = []
    for word in words:
        key, equals, text = word.partition("=")
        values = several(model, key.strip(), text) if equals else None
        if values is None:
            fixed.append(word)
            continue
        _refuse(key.strip(), values, word, [of.key for of in swept])
        swept.append(Swept(key.strip(), values))
    if not swept:
        raise ConfigError(f"sweep needs at least one key with several values, for example {EXAMPLE}")
    return Grid(fixed, sorted(swept))


def several(model: type[BaseModel], key: str, text: str) -> list[str] | None:
    """The values that a text lists; None where it is a single one.

    Commas in brackets or quotes part nothing. Nor do those of a text that its key takes as it is, such as the name of a
    file, unless each part is a value by itself: a number, or in quotes.
    """
    parts = split(text)
    if len(parts) < 2 or is_toml(text):
        return None
    if not all(map(is_toml, parts)) and _takes(model, key, text):
        return None
    return parts


def split(text: str) -> list[str]:
    """Part a text at its commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _refuse(key: str, values: list[str], word: str, before: list[str]) -> None:
    if key in SHARED:
        raise ConfigError(f"{word}: {key} is one for all runs of a sweep. Give it one value, and sweep another key.")
    if key in before:
        raise ConfigError(f"{word}: {key} is listed twice. Write all of its values behind one {key}=, with commas.")
    if not all(values):
        raise ConfigError(f"{word}: a value between two commas is missing. Write for example {EXAMPLE}")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ConfigError(f"{word}: {twice[0]} stands twice. Write every value once.")


def _takes(model: type[BaseModel], key: str, text: str) -> bool:
    """Whether a key's own type takes a text as it is."""
    override = overrides_of(model, {key: text})[0]
    kinds: list[Any] = [*kinds_of(model, override.section).values()]
    if not kinds and override.section in model.model_fields:
        kinds = [model.model_fields[override.section].annotation]
    return any(_is_text(kind, [override.field, *override.inside], text) for kind in kinds)


def _is_text(section: Any, names: list[str], text: str) -> bool:
    if names[0] not in section.model_fields:
        return False
    annotation: Any = section.model_fields[names[0]].annotation
    options = [option for option in (annotation, *get_args(annotation)) if isinstance(option, type)]
    inner = [option for option in options if issubclass(option, BaseModel)]
    if names[1:] and inner:
        return any(_is_text(option, names[1:], text) for option in inner)
    if names[1:]:
        return True  # in a table whose values are what somebody else says
    try:
        TypeAdapter(annotation).validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


# Names


def values_of(settings: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The values of keys in a configuration as plain values."""
    return {key: _inside(settings, overrides_of(None, {key: None})[0]) for key in keys}


def _inside(settings: dict[str, Any], override: Override) -> Any:
    here: Any = settings.get(override.section)
    for name in (override.field, *override.inside):
        here = here.get(name) if isinstance(here, dict) else None
    return here


def said(values: dict[str, Any]) -> str:
    """Settings as they are typed."""
    return " ".join(f"{key}={plain(value)}" for key, value in values.items())


def plain(value: Any) -> str:
    """A value as text."""
    return value if isinstance(value, str) else "null" if value is None else json.dumps(value, ensure_ascii=False)


def run_name(name: str, values: dict[str, Any]) -> str:
    """The name of a run: that of the sweep, each key and its value. The same settings have the same name always."""
    return _no_longer("--".join([name, *(f"{_letters(key)}-{_short(plain(value))}" for key, value in values.items())]))


def sweep_name(name: str, keys: Sequence[str]) -> str:
    """The name of the folder beside the runs that holds the table of a sweep."""
    return _no_longer("--".join([name, "sweep", *map(_letters, keys)]))


def _no_longer(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - DIGITS - 1]}-{_digest(name)}"


def _short(text: str) -> str:
    """A value as a part of a name; one that is long or has other letters ends with its digest."""
    if _letters(text) == text and len(text) <= LONGEST_VALUE:
        return text
    kept = _letters(text.replace("+", ""))[-LONGEST_VALUE:].strip("-.")
    return f"{kept}-{_digest(text)}" if kept else _digest(text)


def _letters(text: str) -> str:
    """A text with nothing but what a run's name may hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
