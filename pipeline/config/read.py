"""A TOML or YAML file -> its sections as plain values."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.config.policy import Adapter
from pipeline.errors import ConfigError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

YAML = (".yaml", ".yml")
# What is no text in YAML 1.2. PyYAML follows 1.1, where 1e-6 is text, and on, no and 12:30 are none.
PLAIN = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+"),
    "float": re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}


def read(path: str) -> dict[str, Any]:
    """Read a file; one that ends in .yaml or .yml is YAML, any other TOML. A run's folder has its settings in it.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        return _read_run(path, file)
    try:
        text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except OSError as error:
        raise ConfigError(
            f"no configuration at {path}: {error.strerror}. Give the path of a TOML or YAML file."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); is it TOML?") from None
    return _read_yaml(path, text) if file.suffix.lower() in YAML else _read_toml(path, text)


def _read_run(path: str, folder: Path) -> dict[str, Any]:
    """Read the settings that a run keeps in its folder; the folder's own place and name are those of the run."""
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        tree = None
    if not isinstance(tree, dict) or not isinstance(tree.get("run"), dict):
        raise ConfigError(
            f"{path} is a folder, and not that of a run: it has no config.json with a run's settings. Give the path of "
            "a TOML or YAML file, or of a run's folder."
        )
    where = folder.resolve()
    tree = {**tree, "run": {**tree["run"], "dir": str(where.parent), "name": where.name}}
    policy = tree.get("policy")
    if isinstance(policy, dict) and isinstance(policy.get("adapter"), dict):
        # What was left out is left out again: beside a path, keys that are given must be those of the adapter there.
        kept = {key: value for key, value in policy["adapter"].items() if not _is_default(key, value)}
        tree["policy"] = {**policy, "adapter": kept}
    return tree


def _is_default(key: str, value: Any) -> bool:
    return key in Adapter.model_fields and value == Adapter.model_fields[key].default


def toml_value(text: str) -> Any:
    """Read one value. A bare word, which TOML does not have, is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def is_toml(text: str) -> bool:
    """Whether a text is one value of TOML; a bare word is none."""
    try:
        return list(tomllib.loads(f"value = {text}")) == ["value"]
    except tomllib.TOMLDecodeError:
        return False


def _read_toml(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        looks = re.search(r"^\w+:\s", text, re.M) and not re.search(r"^\[\w+]", text, re.M)
        fix = " It looks like YAML: let its name end in .yaml." if looks else ""
        raise ConfigError(f"{path} is not valid TOML: {error}{'.' if fix else ''}{fix}") from None


def _read_yaml(path: str, text: str) -> dict[str, Any]:
    """Read YAML. A key that is null counts as left out, as TOML has no null."""
    import yaml

    try:
        tree = yaml.load(text, _loader(yaml))
    except yaml.MarkedYAMLError as error:
        where = f" (at line {error.problem_mark.line + 1})" if error.problem_mark is not None else ""
        raise ConfigError(f"{path} is not valid YAML: {error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {first_line(error)}") from None
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no sections; write for example 'loss:' and below it '  beta: 0.1'")
    return _without_null(tree or {})


def _loader(yaml: Any) -> Any:
    """A safe loader that reads numbers and words as YAML 1.2 does, and refuses a key that stands twice."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            keys = [key.value for key, _ in node.value]
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:str":
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value} is no word", problem_mark=key.start_mark)
                if keys.count(key.value) > 1:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            return super().construct_mapping(node, deep)

    tagged = [(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{plain.pattern})\Z")) for name, plain in PLAIN.items()]
    Loader.yaml_implicit_resolvers = {None: tagged}
    Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten
    Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=[a-zA-Z])", "", node.value)))
    return Loader


def _without_null(tree: dict[str, Any]) -> dict[str, Any]:
    """Leave out sections and keys that are null."""
    given = {name: fields for name, fields in tree.items() if fields is not None}
    return {
        name: {key: value for key, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        for name, fields in given.items()
    }
