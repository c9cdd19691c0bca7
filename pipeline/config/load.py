"""A file + overrides -> a checked configuration, or one error that names each key, its value and the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config.explain import by_key, explain
from pipeline.config.overrides import apply, overrides_of, value_of
from pipeline.config.read import read
from pipeline.config.secrets import refuse_secrets
from pipeline.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

# Keys that hold paths. A relative path is relative to the TOML file; in an override, to the current folder.
FILES = {("run", "dir"), ("run", "workspace"), ("deepspeed", "config")}
URIS = {("reference", "cache"), ("data", "train"), ("data", "eval")}  # a path or a URI
SOURCES = {("data", "train"), ("data", "eval")}  # a path, a URI or the name of a data set on the Hub
# A path or a name.
NAMES = {
    ("tokenizer", "path"), ("tokenizer", "chat_template"), ("policy", "path"), ("reference", "model"),
    ("policy.adapter", "path"),
}  # fmt: skip
WORDS = {("reference", "model"): ("start", "base")}  # values that are no paths, whatever lies beside the file
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_NAME = re.compile(r"\.(jsonl|ndjson|json|csv|gz|zst|parquet|arrow)$")
DEFAULT_KINDS = {"loss": "sigmoid"}
INNER = {("policy", "adapter")}  # sections in a section, whose keys are overridden one by one


def load(model: type[Model], path: str, overrides: Sequence[str] | Mapping[str, Any]) -> Model:
    """Read a file, apply the overrides and check the result.

    Raises:
        ConfigError: the file cannot be read, or a value cannot be used. One line per key.
    """
    tree = read(path)
    _default_folders(model, tree)
    if isinstance(tree.get("loss"), list):  # [[loss]] tables
        tree["loss"] = {"kind": "mixture", "losses": tree["loss"]}
    refuse_secrets(tree)
    _resolve(tree, Path(path).resolve().parent)
    given: set[tuple[Any, ...]] = set()
    for override in overrides_of(model, overrides):
        alone: dict[str, Any] = {}
        apply(alone, override)
        refuse_secrets(alone)
        _resolve(alone, Path.cwd())
        given |= {(override.section,)} if override.section not in tree else set()
        inner = override.inside if (override.section, override.field) in INNER else ()
        given.add((override.section, override.field, *inner))
        apply(tree, override._replace(value=value_of(alone, override)))
    for section, kind in DEFAULT_KINDS.items():
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section].setdefault("kind", kind)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'override' if any(k[: len(key)] == key for k in given) else path}: {explain(model, key, items)}"
            for key, items in by_key(model, error).items()
        ]
        raise ConfigError("\n".join(lines)) from None


def _default_folders(model: type[BaseModel], tree: dict[str, Any]) -> None:
    """Write default paths into the tree, so that they are resolved like the paths in the file."""
    for section, field in FILES:
        default = getattr(model.model_fields[section].default, field, None)
        if isinstance(default, str) and isinstance(tree.setdefault(section, {}), dict):
            tree[section].setdefault(field, default)


def _resolve(tree: dict[str, Any], base: Path) -> None:
    """Make all paths absolute. Relative ones are relative to `base`."""
    for section, fields in tree.items():
        if not isinstance(fields, dict):
            continue
        for field, value in fields.items():
            if (section, field) in INNER:
                _resolve({f"{section}.{field}": value}, base)
            if (section, field) in FILES | URIS:
                resolved = [_resolved(section, field, v, base) for v in (value if isinstance(value, list) else [value])]
                fields[field] = resolved if isinstance(value, list) else resolved[0]
            elif (section, field) in NAMES and isinstance(value, str):
                _refuse_empty(f"{section}.{field}", value)
                if value not in WORDS.get((section, field), ()) and _is_path(value, base):
                    fields[field] = _absolute(f"{section}.{field}", value, base)


def _resolved(section: str, field: str, value: Any, base: Path) -> Any:
    """Make one path absolute, or the path in a table. URIs and Hub names stay as they are."""
    if isinstance(value, dict) and (section, field) in SOURCES and isinstance(value.get("path"), str):
        return {**value, "path": _resolved(section, field, value["path"], base)}
    if not isinstance(value, str) or ((section, field) in URIS and "://" in value):
        return value
    _refuse_empty(f"{section}.{field}", value)
    hub = HUB_NAME.fullmatch(value) and not FILE_NAME.search(value)
    if (section, field) in SOURCES and hub and not (base / value.partition("/")[0]).is_dir():
        return value
    return _absolute(f"{section}.{field}", value, base)


def _refuse_empty(key: str, value: str) -> None:
    """Refuse an empty path, as a variable that a script forgot to set leaves it: it would name the current folder."""
    if not value.strip():
        raise ConfigError(f"{key} is empty. Name what it should be, or leave the key out ({key}=null unsets it).")


def _is_path(value: str, base: Path) -> bool:
    """Tell whether a value is a path: neither a name nor the text of a chat template."""
    return "{" not in value and (value.startswith((".", "/", "~")) or "://" in value or (base / value).exists())


def _absolute(key: str, value: str, base: Path) -> str:
    if "://" in value:
        raise ConfigError(f"{key} = {value!r}: URIs are not read here; copy it to a folder that every node sees")
    try:
        return str((base / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a link to itself, a null byte
        raise ConfigError(f"{key} = {value!r} is not a usable path: {error}") from None
