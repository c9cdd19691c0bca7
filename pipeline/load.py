"""TOML file + overrides -> a checked configuration, or one error that names the key, its value and the fix."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

Model = TypeVar("Model", bound=BaseModel)

# Relative paths are relative to the TOML file that names them, those of an override to the current folder.
FILES = {("run", "dir"), ("run", "workspace"), ("deepspeed", "config")}
URIS = {("reference", "cache"), ("data", "train"), ("data", "eval")}  # the same, or a URI
SOURCES = {("data", "train"), ("data", "eval")}  # the same, or the name of a data set on the hub
NAMES = {("tokenizer", "path"), ("tokenizer", "chat_template"), ("policy", "path")}  # a path, or else a name
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_NAME = re.compile(r"\.(jsonl|ndjson|json|csv|gz|zst|parquet|arrow)$")
DEFAULT_KINDS = {"loss": "sigmoid"}


def load(model: type[Model], path: str, overrides: list[str]) -> Model:
    """Read, override, check."""
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
    _resolve(tree, file.resolve().parent)
    given: set[tuple[Any, ...]] = set()
    for override in overrides:
        extra = _parse_override(override)
        given |= {(section,) for section in extra if section not in tree}
        given |= {(section, field) for section, fields in extra.items() for field in fields}
        _merge(tree, extra)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'override' if any(k[: len(key)] == key for k in given) else path}: {_explain(model, key, items)}"
            for key, items in _by_key(model, error).items()
        ]
        raise ConfigError("\n".join(lines)) from None


def _default_folders(model: type[BaseModel], tree: dict[str, Any]) -> None:
    """A default path is as relative as a written one: spell it out, so that it is resolved with the others."""
    for section, field in FILES:
        default = getattr(model.model_fields[section].default, field, None)
        if isinstance(default, str) and isinstance(tree.setdefault(section, {}), dict):
            tree[section].setdefault(field, default)


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    section, dot, field = key.strip().partition(".")
    if not (equals and dot and section and field):
        raise ConfigError(f"cannot read the override {override!r}; write section.field=value, as in loss.beta=0.05")
    try:
        # TOML has no null; here it unsets what the file sets.
        value = None if text.strip() == "null" else tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
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
            if (section, field) in FILES | URIS:
                resolved = [_resolved(section, field, v, base) for v in (value if isinstance(value, list) else [value])]
                fields[field] = resolved if isinstance(value, list) else resolved[0]
            elif (section, field) in NAMES and isinstance(value, str) and _is_path(value, base):
                fields[field] = _absolute(f"{section}.{field}", value, base)


def _resolved(section: str, field: str, value: Any, base: Path) -> Any:
    """One path, or a table that has one."""
    if isinstance(value, dict) and (section, field) in SOURCES and isinstance(value.get("path"), str):
        return {**value, "path": _resolved(section, field, value["path"], base)}
    if not isinstance(value, str) or ((section, field) in URIS and "://" in value):
        return value
    hub = HUB_NAME.fullmatch(value) and not FILE_NAME.search(value)
    if (section, field) in SOURCES and hub and not (base / value).exists():
        return value
    return _absolute(f"{section}.{field}", value, base)


def _is_path(value: str, base: Path) -> bool:
    """Not a name, and not the text of a chat template either."""
    return "{" not in value and (value.startswith((".", "/", "~")) or "://" in value or (base / value).exists())


def _absolute(key: str, value: str, base: Path) -> str:
    if "://" in value:
        raise ConfigError(f"{key} = {value!r}: only files and folders that every node sees are read; mount or copy it")
    try:
        return str((base / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a link to itself, a null byte
        raise ConfigError(f"{key} = {value!r} is no usable path: {error}") from None


def _by_key(model: type[BaseModel], error: ValidationError) -> dict[tuple[Any, ...], list[Any]]:
    """What pydantic found, by (section, field). A value that may be of several types fails once for each of them."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        section, *rest = item["loc"] or ("",)
        if rest and rest[0] in _kinds(model, section):  # pydantic puts the kind behind the section's name
            rest = rest[1:]
        found.setdefault((section, *rest[:1]), []).append(item)
    return found


def _kinds(model: type[BaseModel], section: Any) -> list[str]:
    """The values of `kind` that a section may have."""
    options = get_args(model.model_fields[section].annotation) if section in model.model_fields else ()
    return [kind for option in options for kind in get_args(option.model_fields["kind"].annotation)]


def _explain(model: type[BaseModel], key: tuple[Any, ...], items: list[Any]) -> str:
    """One line for one key."""
    items = _of_sources(items)
    item = items[0]
    where, value, kind = ".".join(map(str, key)), item["input"], item["type"]
    if key == ("loss", "losses") and len(item["loc"]) > 3:  # [[loss]] tables
        return _explain_entry(item)
    if item.get("source"):
        number = "".join(f"[{part}]" for part in item["loc"] if isinstance(part, int))
        where = f"{where}{number}.{item['loc'][-1]}"
        if kind == "missing":
            return f"{where} is missing: a source needs a path"
        if kind == "extra_forbidden":
            return f"{where} = {value!r}: there is no such key; there are: path, weight, split, name, columns"
        return f"{where} = {value!r}: it must be {item['msg'].removeprefix('Input should be ')}"
    if kind == "extra_forbidden":
        names = _fields_at(model, key[:-1], item["loc"])
        close = difflib.get_close_matches(str(key[-1]), names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        return f"{where} = {value!r}: there is no such {'section' if len(key) == 1 else 'key'}; {hint}"
    if kind == "missing":
        return f"{where} is missing; add it under [{key[0]}]" if len(key) > 1 else f"[{where}] is missing"
    if kind in ("model_type", "model_attributes_type"):
        return f"{where} = {value!r}: it is a section; write [{where}] above its keys"
    if kind == "union_tag_not_found":
        return f"{where}.kind is missing; set it to one of {', '.join(_kinds(model, key[0]))}"
    if kind == "union_tag_invalid":
        return f"{where}.kind = {value.get('kind')!r}: it must be one of {item['ctx']['expected_tags']}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{where} = {value!r}: it must match {item['ctx']['pattern']}"
    musts = dict.fromkeys(i["msg"].removeprefix("Input should be ") for i in items if _entry(i) is None)
    inside = [i for i in items if _entry(i) is not None]
    if inside:  # a list was meant, and one of its entries is wrong
        where, value = f"{where}[{_entry(inside[0])}]", inside[0]["input"]
    return f"{where} = {value!r}: it must be {' or '.join(musts)}".replace("dictionary", "table")


def _of_sources(items: list[Any]) -> list[Any]:
    """A table { path = ... } may stand where a path does: what is wrong in it, if one was given, else what is not."""
    inside = [item for item in items if "Source" in item["loc"][:-1]]
    if inside:
        parts = [part for part in inside[0]["loc"] if isinstance(part, int) or part in ("data", "train", "eval")]
        return [{**item, "loc": (*parts, item["loc"][-1]), "source": True} for item in inside[:1]]
    return [item for item in items if item["type"] not in ("model_type", "model_attributes_type")] or items


def _explain_entry(item: Any) -> str:
    """One line for one key of one of several losses: loss, mixture, losses, 0, its kind, the key."""
    _, _, _, number, *rest = item["loc"]
    where = ".".join([f"loss[{number}]", *map(str, rest[1:])])
    if item["type"] == "extra_forbidden":
        return f"{where} = {item['input']!r}: there is no such key"
    if item["type"] == "union_tag_not_found":
        return f"{where}.kind is missing; each [[loss]] has one"
    if item["type"] == "union_tag_invalid":
        return f"{where}.kind = {item['input']['kind']!r}: it must be one of {item['ctx']['expected_tags']}"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    return f"{where} = {item['input']!r}: it must be {item['msg'].removeprefix('Input should be ')}"


def _entry(item: Any) -> int | None:
    """Which entry of a list an error is about, counted from 0."""
    return next((part for part in item["loc"] if isinstance(part, int)), None)


def _fields_at(model: type[BaseModel], keys: tuple[Any, ...], loc: tuple[Any, ...]) -> list[str]:
    here: Any = model
    for key in keys:
        here = here.model_fields[key].annotation
        for option in get_args(here):  # a tagged union: take the variant that the location names
            kinds = getattr(option, "model_fields", {}).get("kind")
            if kinds is not None and set(get_args(kinds.annotation)) & set(loc):
                here = option
    return sorted(here.model_fields, key=lambda name: name != "kind")  # what decides the others comes first
