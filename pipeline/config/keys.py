"""Every configuration key with its default and what it means, as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config.sections import Config


def describe_keys() -> str:
    """One line a key, one paragraph a section, in TOML's own form where a key has a default."""
    return "\n\n".join(text for name, field in Config.model_fields.items() for text in _section(name, field))


def _section(name: str, field: FieldInfo) -> Iterator[str]:
    variants = _variants(field.annotation)
    about = "  # in one of these forms, as kind says" if len(variants) > 1 else ""
    for variant in variants:
        kind_first = sorted(variant.model_fields.items(), key=lambda item: item[0] != "kind")
        lines = [_line(key, inner) for key, inner in kind_first]
        yield "\n".join([f"[{name}]{about}", *lines])


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """The sections that may stand under one name: several where a `kind` chooses."""
    options = get_args(annotation) or (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _line(key: str, field: FieldInfo) -> str:
    """`key = default  # choices. help`"""
    choices = [value for value in get_args(field.annotation) if isinstance(value, str | int)]
    if field.default is PydanticUndefined:
        shown = json.dumps(choices[0]) if len(choices) == 1 else "... (must be given)"
    else:
        shown = "(unset)" if field.default is None else json.dumps(field.default)
    about = [f"one of {', '.join(map(json.dumps, choices))}."] if len(choices) > 1 else []
    about += [re.sub(r"\s+", " ", field.description)] if field.description else []
    return f"{key} = {shown}".ljust(38) + f"# {' '.join(about)}" if about else f"{key} = {shown}"
