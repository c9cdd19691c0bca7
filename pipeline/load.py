"""TOML file + overrides -> a checked configuration, or one error that names the key, its value and the fix."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)

# Relative paths are relative to the TOML file that names them, those of an override to the current folder.
FILES = {("run", "dir"), ("run", "workspace"), ("data", "train"), ("data", "eval"), ("deepspeed", "config")}
NAMES = {("tokenizer", "path"), ("tokenizer", "chat_template"), ("policy", "path")}  # a path, or else a name


def load(model: type[Model], path: str, overrides: list[str]) -> Model:
    """Read, override, check."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"no configuration at {path}: {error.strerror}. Give the path of a TOML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Is it a TOML file?") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    _resolve(tree, file.resolve().parent)
    for override in overrides:
        _merge(tree, _parse_override(override))
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, model, item) for item in error.errors())) from None


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and section and field):
        raise ConfigError(f"cannot read the override {override!r}: write section.field=value, for example loss.beta=0.05")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    tree = {section: {field: value}}
    _resolve(tree, Path.cwd())
    return tree


def _merge(tree: dict[str, Any], extra: dict[str, Any]) -> None:
    for section, fields in extra.items():
        if not isinstance(tree.setdefault(section, {}), dict):
            raise ConfigError(f"{section} is a section, and the file gives it the value {tree[section]!r}")
        tree[section].update(fields)


def _resolve(tree: dict[str, Any], base: Path) -> None:
    """Make the paths of one source absolute, relative to where that source stands."""
    for section, fields in tree.items():
        if not isinstance(fields, dict):
            continue
        for field, value in fields.items():
            values = value if isinstance(value, list) else [value]
            if (section, field) in FILES and all(isinstance(v, str) for v in values):
                paths = [_absolute(f"{section}.{field}", v, base) for v in values]
                fields[field] = paths if isinstance(value, list) else paths[0]
            elif (section, field) in NAMES and isinstance(value, str):
                there = base / value
                if value.startswith((".", "/", "~")) or there.exists():
                    fields[field] = _absolute(f"{section}.{field}", value, base)


def _absolute(key: str, value: str, base: Path) -> str:
    if "://" in value:
        raise ConfigError(f"{key} = {value!r}: only folders and files that every node can see are read; mount or copy it")
    return str((base / Path(value).expanduser()).resolve())


def _explain(path: str, model: type[BaseModel], item: Any) -> str:
    """One line for one thing that pydantic found."""
    keys = [str(part) for part in item["loc"] if str(part) not in ("huggingface", "x-transformers")]
    where = ".".join(key for key in keys if "[" not in key and key not in ("str", "float", "list"))
    value = item["input"]
    if item["type"] == "extra_forbidden":
        names = _fields_at(model, keys[:-1], item["loc"])
        close = difflib.get_close_matches(keys[-1], names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"it may hold: {', '.join(names)}"
        return f"{path}: {where} = {value!r}: there is no such key; {hint}"
    if item["type"] == "missing":
        return f"{path}: {where} is missing; add it under [{keys[0]}]" if len(keys) > 1 else f"{path}: [{where}] is missing"
    if item["type"] == "union_tag_not_found":
        return f'{path}: {where} needs a kind: "huggingface" or "x-transformers"'
    if item["type"] == "union_tag_invalid":
        return f"{path}: {where}.kind = {value.get('kind')!r}: it must be one of {item['ctx']['expected_tags']}"
    if item["type"] == "value_error":
        return f"{path}: {item['ctx']['error']}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{path}: {where} = {value!r}: {message}"


def _fields_at(model: type[BaseModel], keys: list[str], loc: tuple[Any, ...]) -> list[str]:
    here: Any = model
    for key in keys:
        here = here.model_fields[key].annotation
        for option in get_args(here):  # a tagged union: take the variant that the location names
            kinds = getattr(option, "model_fields", {}).get("kind")
            if kinds is not None and get_args(kinds.annotation)[0] in loc:
                here = option
    return list(here.model_fields)
