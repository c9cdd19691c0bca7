"""The text of `ray-align --keys`: every configuration key with its default and its meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config.losses import MixedLoss
from pipeline.config.sections import Config

MUST = "... (must be given)"


class Key(NamedTuple):
    """One key of a section, as text."""

    name: str
    default: str
    about: str

    def line(self, of: str = "") -> str:
        """Return `name = default  # of about`."""
        about = " ".join(part for part in (of, self.about) if part)
        return f"{self.name} = {self.default}".ljust(38) + f"# {about}" if about else f"{self.name} = {self.default}"


def describe_keys(sections: Collection[str] = tuple(Config.model_fields)) -> str:
    """Return one paragraph per section, with one line per key; a key with a default is written as in TOML."""
    return "\n\n".join(_section(name, field) for name, field in Config.model_fields.items() if name in sections)


def values_of_keys(model: type[BaseModel]) -> dict[str, list[str]]:
    """Return every `section.field` with values that an override may give it: its default first, where it has one.

    Where kinds of a section differ in a default, it is that of the first.
    """
    found: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        kinds = _kinds(field.annotation)
        if kinds:
            default = [] if field.default is PydanticUndefined else [field.default.kind]
            found[f"{name}.kind"] = list(dict.fromkeys([*default, *kinds]))
        sections: Any = kinds.values() or [field.annotation]
        for section in sections:
            inner = {f"{name}.{key}": part for key, part in _sections_in(section).items()} if kinds else {}
            for where, part in {name: section, **inner}.items():
                for key, each in part.model_fields.items():
                    found.setdefault(f"{where}.{key}", _values(each))
    return found


def _values(field: FieldInfo) -> list[str]:
    """The default, and the other choices where there are some, as an override writes them."""
    given = [] if field.default is PydanticUndefined or field.default is None else [field.default]
    union = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
    options = [field.annotation, *union]
    choices = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    choices += [True, False] if bool in options else []
    plain = [each if isinstance(each, str) else json.dumps(each, separators=(",", ":")) for each in [*given, *choices]]
    return list(dict.fromkeys(plain))


def _section(name: str, field: FieldInfo) -> str:
    kinds = _kinds(field.annotation)
    if kinds:
        inner = [_inner(name, *found) for kind in kinds.values() for found in _sections_in(kind).items()]
        return "\n".join([f"[{name}]  # {field.description}", *_lines_of_kinds(field, kinds), *inner])
    section: Any = field.annotation
    return "\n".join([f"[{name}]  # {section.__doc__}", *(key.line() for key in _keys(section))])


def _sections_in(section: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The sections that may stand in a section, by key."""
    named = ((name, get_args(field.annotation)) for name, field in section.model_fields.items())
    found = {name: [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)] for name, options in named}
    return {name: options[0] for name, options in found.items() if options and section is not MixedLoss}


def _inner(outer: str, name: str, section: type[BaseModel]) -> str:
    return "\n".join([f"\n[{outer}.{name}]  # {section.__doc__}", *(key.line() for key in _keys(section))])


def _lines_of_kinds(field: FieldInfo, kinds: dict[str, type[BaseModel]]) -> list[str]:
    """List the keys that all kinds share, then the own keys of each kind, then the meanings of those, each once."""
    having: dict[Key, list[str]] = {}
    for kind, section in kinds.items():
        for key in _keys(section):
            having.setdefault(key, []).append(kind)
    # A mixture is a list of losses and shares no key with them, so it does not count here.
    single = sum(section is not MixedLoss for section in kinds.values())
    shared = [key for key, of in having.items() if len(of) >= single]
    default = MUST if field.default is PydanticUndefined else json.dumps(field.default.kind)
    lines = [Key("kind", default, "one of the kinds below.").line(), *(key.line() for key in shared), ""]
    lines += ["Each kind's own keys, with their defaults:"]
    width = max(map(len, kinds))
    lines += [f"  {kind:{width}}  {_own(_keys(section), shared)}" for kind, section in kinds.items()]
    return [*lines, "", "Their meaning:", *_meanings({key: of for key, of in having.items() if key not in shared})]


def _own(keys: list[Key], shared: list[Key]) -> str:
    own = ", ".join(f"{key.name} = {key.default}" for key in keys if key not in shared)
    lacking = ", ".join(key.name for key in shared if key not in keys)
    return (own or "no other") + (f", and no {lacking}" if lacking else "")


def _meanings(having: dict[Key, list[str]]) -> list[str]:
    """Return one line per meaning of a key. The line names its kinds, unless most kinds with the key share it."""
    kinds_with = {name: sum(len(of) for key, of in having.items() if key.name == name) for name, *_ in having}
    return [
        key.line("" if 2 * len(of) > kinds_with[key.name] else f"{', '.join(of)}:")
        for name in kinds_with
        for key, of in having.items()
        if key.name == name
    ]


def _kinds(annotation: Any) -> dict[str, type[BaseModel]]:
    """Map each `kind` of a tagged union to its section. Empty for a section without kinds."""
    options = [option for option in get_args(annotation) if isinstance(option, type) and issubclass(option, BaseModel)]
    return {kind: option for option in options for kind in get_args(option.model_fields["kind"].annotation)}


def _keys(section: type[BaseModel]) -> list[Key]:
    """Return the keys of a section except `kind`."""
    return [_key(name, field) for name, field in section.model_fields.items() if name != "kind"]


def _key(name: str, field: FieldInfo) -> Key:
    choices = [json.dumps(value) for value in get_args(field.annotation) if isinstance(value, str | int)]
    if field.default is PydanticUndefined:
        default = MUST
    else:
        default = "(unset)" if field.default is None else json.dumps(field.default)
    about = [f"one of {', '.join(choices)}."] if len(choices) > 1 else []
    about += [re.sub(r"\s+", " ", field.description)] if field.description else []
    return Key(name, default, " ".join(about))
