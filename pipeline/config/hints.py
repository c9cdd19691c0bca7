"""A key or an option that is not there -> what to write instead."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.config.words import SECTIONS, VALUES, WORDS

LISTED = re.compile(r"\S,\s*\S")
ALIKE = 0.75  # similarity from which another spelling is proposed
ALIKE_ELSEWHERE = 0.85  # the same, for keys of other sections and words of other programs


def hint(model: type[BaseModel], key: tuple[Any, ...], value: Any, names: list[str]) -> str:
    """Say what may have been meant by a key or section that is not there.

    Args:
        names: what there is in its place.
    """
    word = _plain(str(key[-1]))
    if len(key) == 1 and isinstance(value, dict | list) and word in SECTIONS:
        return f"the section is [{SECTIONS[word]}]"
    there = f"there are: {', '.join(names)}"
    kinds = [kind for kind, section in kinds_of(model, str(key[0])).items() if word in section.model_fields]
    if len(key) > 1 and kinds:
        return f"it belongs to {key[0]}.kind = {' or '.join(map(repr, kinds))}; with this kind {there}"
    advice = _by_meaning(model, word)
    if advice is not None:
        return advice
    close = difflib.get_close_matches(word, names, 1, ALIKE)
    if close:
        return f"did you mean {close[0]!r}?"
    return _by_spelling_elsewhere(model, word) or there


def advice_for(model: type[BaseModel], name: str) -> str | None:
    """Say which key a name without its section stands for, or why there is none; None where nothing is known."""
    word = _plain(name)
    return _by_meaning(model, word) or _by_spelling_elsewhere(model, word)


def of_flag(model: type[BaseModel], option: str, value: str) -> str | None:
    """Say what to write for an option such as --beta, or why there is nothing; None where nothing is known.

    Args:
        value: what stands behind it on the command line; "" where nothing does.
    """
    word = _plain(option.lstrip("-"))
    if word in ("config", "config_file", "cfg"):
        return "the file stands without an option, as in ray-align run my.toml"
    section, _, field = word.partition(".")
    known = WORDS.get(word)
    if field in fields_of(model, section):
        key = word
    elif known is None:
        places = homes(model, word)
        key = places[0] if len(places) == 1 else None
    elif known.note:
        return known.advice
    else:
        key = known.key
    return f"write {key}={value or 'VALUE'} behind the file, without dashes" if key else advice_for(model, word)


def of_value(where: str, value: Any) -> str:
    """Say what another program's word for a value is called here, as the end of a sentence; "" where none is known."""
    said = VALUES.get(where, {}).get(value.lower()) if isinstance(value, str) else None
    return f"; {said}" if said else ""


def of_list(value: Any) -> str:
    """Say where several values with commas between them are taken, as the end of a sentence; "" for any other value."""
    return "; several values are tried by ray-align sweep" if isinstance(value, str) and LISTED.search(value) else ""


def homes(model: type[BaseModel], word: str) -> list[str]:
    """The keys of this name, with their sections."""
    return [f"{section}.{word}" for section in model.model_fields if word in fields_of(model, section)]


def fields_of(model: type[BaseModel], section: str) -> set[str]:
    """The keys of a section, of all its kinds together."""
    if section not in model.model_fields:
        return set()
    kinds = kinds_of(model, section).values() or [model.model_fields[section].annotation]
    return {name for kind in kinds for name in getattr(kind, "model_fields", {})}


def kinds_of(model: type[BaseModel], section: str) -> dict[str, Any]:
    """Map each value of a section's `kind` to its class; empty for a section without kinds."""
    options = get_args(model.model_fields[section].annotation) if section in model.model_fields else ()
    return {kind: option for option in options for kind in get_args(option.model_fields["kind"].annotation)}


def _by_meaning(model: type[BaseModel], word: str) -> str | None:
    if word in WORDS:
        return WORDS[word].advice
    places = homes(model, word)
    return f"the key is {' or '.join(places)}" if places else None


def _by_spelling_elsewhere(model: type[BaseModel], word: str) -> str | None:
    own = {name for section in model.model_fields for name in fields_of(model, section)}
    close = difflib.get_close_matches(word, sorted({*own, *WORDS}), 1, ALIKE_ELSEWHERE)
    return _by_meaning(model, close[0]) if close else None


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_")
