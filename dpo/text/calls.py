"""Tool calls and tools -> one form: objects, without the nulls that columns of one type add."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# In a JSON schema, what stands below these names is a value, and null is one of them.
VALUES = ("enum", "const", "default")
# Below these names the keys are names that somebody chose, and the values are schemas.
NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
# What may be JSON text in a column that can hold only text.
AS_TEXT = ("function", "parameters", "input_schema", "items", *NAMED)

DEEPEST = 64  # maximum levels of tools and calls: comparing, rendering and writing them recurses once per level


def too_deep(value: Any, left: int = DEEPEST) -> bool:
    """Tell whether a value is nested more deeply than DEEPEST."""
    if not isinstance(value, (Mapping, list)):
        return False
    return left == 0 or any(
        too_deep(inner, left - 1) for inner in (value.values() if isinstance(value, Mapping) else value)
    )


def parsed(value: Any) -> Any:
    """Return the object or list that a text holds as JSON; any other value unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        found = json.loads(value)
        json.dumps(found, ensure_ascii=False).encode()  # an escape in JSON may be half a character
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, (dict, list)) and not too_deep(found) else value


def normal_calls(calls: Any) -> Any:
    """Return the calls of a message as a list of objects with objects as arguments, as far as they are that."""
    calls = parsed(calls)
    return [_call(call) for call in calls] if isinstance(calls, list) else calls


def normal_tools(tools: Any) -> Any:
    """Return tools as a list of objects, as far as they are that."""
    tools = parsed(tools)
    return [_schema(parsed(tool)) for tool in tools] if isinstance(tools, list) else tools


def with_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have their arguments as JSON text, for a template that writes them as they are."""
    calls = []
    for call in message["tool_calls"]:
        holder = call["function"] if isinstance(call.get("function"), Mapping) else call
        arguments = holder.get("arguments")
        if not isinstance(arguments, str):
            holder = {**holder, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({**call, "function": holder} if "function" in call else holder)
    return {**message, "tool_calls": calls}


def _call(given: Any) -> Any:
    call = parsed(given)
    if not isinstance(call, Mapping):
        return call
    if call is given:  # text is not touched by columns: its nulls are the author's
        call = _without_nulls(call)
    function = parsed(call.get("function"))
    if isinstance(function, Mapping):
        return {**call, "function": _with_arguments(function)}
    return _with_arguments(call) if "name" in call else call


def _with_arguments(holder: Mapping[str, Any]) -> dict[str, Any]:
    arguments = parsed(holder.get("arguments"))
    nothing = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    return {**holder, "arguments": {} if nothing else arguments}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _schema(value: Any) -> Any:
    """Return a tool, or a schema in it, in its normal form. A null in a schema means that there is no such key."""
    if isinstance(value, list):
        return [_schema(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    found = {}
    for name, given in value.items():
        inner = parsed(given) if name in AS_TEXT else given
        if name in VALUES:
            found[name] = inner
        elif name in NAMED and isinstance(inner, Mapping):
            found[name] = {key: _schema(parsed(schema)) for key, schema in inner.items() if schema is not None}
        elif inner is not None:
            found[name] = _schema(inner)
    return found
