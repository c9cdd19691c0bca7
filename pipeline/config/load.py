"""TOML file + overrides -> a checked configuration, or one error that names each key, its value and the fix."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config.explain import by_key, explain
from pipeline.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

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
# A user before the host of a URI, or a parameter that signs it or lets somebody in.
SECRET = re.compile(r"://([^/?#\s]*@|\S*[?&][^=&\s]*(token|secret|passw|credential|sig|key)[^=&\s]*=)", re.I)
DEFAULT_KINDS = {"loss": "sigmoid"}
INNER = {("policy", "adapter")}  # sections in a section, whose keys are overridden one by one


def load(model: type[Model], path: str, overrides: list[str]) -> Model:
    """Read a TOML file, apply the overrides and check the result.

    Raises:
        ConfigError: the file cannot be read, or a value cannot be used. One line per key.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"no configuration at {path}: {error.strerror}. Give the path of a TOML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); is it TOML?") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    _default_folders(model, tree)
    if isinstance(tree.get("loss"), list):  # [[loss]] tables
        tree["loss"] = {"kind": "mixture", "losses": tree["loss"]}
    for section, kind in DEFAULT_KINDS.items():
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section].setdefault("kind", kind)
    _refuse_secrets(tree)
    _resolve(tree, file.resolve().parent)
    given: set[tuple[Any, ...]] = set()
    for override in overrides:
        extra = _parse_override(override)
        given |= {(section,) for section in extra if section not in tree}
        given |= {
            (section, field, *inner)
            for section, fields in extra.items()
            for field, value in fields.items()
            for inner in ([(key,) for key in value] if (section, field) in INNER and isinstance(value, dict) else [()])
        }
        _merge(tree, extra)
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


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and section and field):
        shown = "..." if SECRET.search(override) else override
        raise ConfigError(f"cannot read the override {shown!r}; write section.field=value, as in loss.beta=0.05")
    try:
        # TOML has no null; in an override it removes a key of the file.
        value = None if text.strip() == "null" else tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    outer, dot, inner = field.partition(".")
    nested = dot and (section, outer) in INNER
    tree: dict[str, Any] = {section: {outer: {inner: value}} if nested else {field: value}}
    _refuse_secrets(tree)
    _resolve(tree, Path.cwd())
    return tree


def _refuse_secrets(tree: Any, key: str = "") -> None:
    """Refuse a URI with credentials, without showing them: it would be written to folders and logs."""
    if isinstance(tree, dict | list):
        named = tree.items() if isinstance(tree, dict) else ((key, value) for value in tree)
        for name, value in named:
            _refuse_secrets(value, f"{key}.{name}" if key and isinstance(tree, dict) else str(name))
    elif isinstance(tree, str) and SECRET.search(tree):
        raise ConfigError(
            f"{key} is a URI with a user name, password, key or token in it, which would be shown and written to the "
            "run's folder. Leave it out: credentials come from the environment, as for the store's tools."
        )


def _merge(tree: dict[str, Any], extra: dict[str, Any]) -> None:
    for section, fields in extra.items():
        if not isinstance(tree.setdefault(section, {}), dict):
            raise ConfigError(f"{section} is a section, and the file gives it the value {tree[section]!r}")
        for field, value in fields.items():
            there = tree[section].get(field)
            inner = (section, field) in INNER and isinstance(value, dict) and isinstance(there, dict)
            tree[section][field] = there | value if inner else value


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
    if (section, field) in SOURCES and hub and not (base / value).exists():
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
