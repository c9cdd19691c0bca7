"""section.field=value -> what it replaces in the sections of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config.hints import advice_for
from pipeline.config.read import toml_value
from pipeline.config.secrets import SECRET
from pipeline.errors import ConfigError

WHOLE = {"labels", "resources"}  # tables whose own keys hold dots
PYTHON = {"None": "null, which unsets it", "True": "true", "False": "false"}


class Override(NamedTuple):
    """A value for a key, or for a key inside its table."""

    section: str
    field: str
    inside: tuple[str, ...]  # the keys below the field
    value: Any  # None: unset


def overrides_of(model: Any, given: Sequence[str] | Mapping[str, Any]) -> list[Override]:
    """Read overrides: `section.field=value` words, or a mapping from `section.field` to values.

    Raises:
        ConfigError: a word is no override.
    """
    if isinstance(given, Mapping):
        return [_of(key, value) or _refuse(model, f"{key}={value}") for key, value in given.items()]
    return [_parse(model, word) for word in given]


def apply(tree: dict[str, Any], override: Override) -> None:
    """Put a value into the sections of a file.

    Raises:
        ConfigError: the file has a value where a table is needed.
    """
    section, field, inside, value = override
    here, where = tree.setdefault(section, {}), section
    if not isinstance(here, dict):
        raise ConfigError(f"{section} is a section, and the file gives it the value {here!r}")
    *way, last = (field, *inside)
    for name in way:
        here, where = here.setdefault(name, {}), f"{where}.{name}"
        if not isinstance(here, dict):
            raise ConfigError(f"override: {where}.{last} = {value!r}: {where} = {here!r} is no table, which has keys")
    if value is None:
        here.pop(last, None)
    else:
        here[last] = value


def value_of(tree: dict[str, Any], override: Override) -> Any:
    """Return what sections have where an override puts its value; None where nothing is."""
    here: Any = tree.get(override.section, {})
    for name in (override.field, *override.inside):
        here = here.get(name) if here is not None else None
    return here


def _parse(model: Any, word: str) -> Override:
    key, equals, text = word.partition("=")
    if text.strip() in PYTHON:
        raise ConfigError(f"override: {key.strip()} = {text.strip()}: write {key.strip()}={PYTHON[text.strip()]}")
    value = None if text.strip() == "null" else toml_value(text.strip())
    return (_of(key, value) if equals else None) or _refuse(model, word)


def _of(key: str, value: Any) -> Override | None:
    section, _, rest = key.strip().partition(".")
    field, dot, inside = rest.partition(".")
    if not (section and field) or (dot and not all(inside.split("."))):
        return None
    parts = (inside,) if field in WHOLE else tuple(inside.split("."))
    return Override(section, field, parts if dot else (), value)


def _refuse(model: Any, word: str) -> Override:
    """Say what an override looks like, and the key that may have been meant."""
    name, equals, _ = word.partition("=")
    shown = "..." if SECRET.search(word) else word
    advice = advice_for(model, name.strip()) if equals and name.strip() and "." not in name else None
    meant = f"; {advice}" if advice else ""
    raise ConfigError(f"cannot read the override {shown!r}; write section.field=value, as in loss.beta=0.05{meant}")
