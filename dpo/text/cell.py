"""A cell whose text stands for a list or an object, as JSON or as Python writes it -> the list or object.

CSV files have nothing but such cells. Trained as text, a list of messages would teach its brackets and quotes.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from dpo.text.calls import too_deep
from dpo.text.messages import CALLS, ROLES, SAID, SAYS, THOUGHTS
from dpo.text.rejection import Rejection

OPENS = frozenset("[{ \t\r\n\ufeff")  # what such a text may begin with: anything else is told apart by one look
KEYS = (("role", "content"), ("from", "value"))
HOLDERS = ("messages", "conversations", "conversation")
BESIDE = ("system", "tools")  # what an object that holds messages may hold with them
SPEAKS = frozenset((*SAID, *THOUGHTS, CALLS[0], "function_call"))
SPEAKERS = frozenset((*ROLES, *SAYS, "function_call"))
# The beginning of a list of objects, or of one, with any name: what Python or numpy wrote may still be no literal.
OBJECTS = re.compile(r"""[\s\ufeff]*(?:\[\s*)?\{\s*['"]\w+['"]\s*:""")
# The beginning of a list of texts or of objects, or of an object.
LIST_OR_OBJECT = re.compile(r"""[\s\ufeff]*(?:\[\s*[\["'{]|\{\s*["'])""")
BROKEN = "is a list of messages written as text that is no JSON; keep it as JSON Lines or Parquet"


def may_stand_for_more(text: str) -> bool:
    """Tell whether a text begins as a list or an object does."""
    return text[:1] in OPENS and text[:64].lstrip(" \t\r\n\ufeff")[:1] in ("[", "{")


def decoded(value: Any) -> Any:
    """Return the list or object that a text stands for; anything else unchanged."""
    if not isinstance(value, str) or not may_stand_for_more(value):
        return value
    text = value.lstrip("\ufeff")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _literal(text.strip())
    return found if isinstance(found, (list, dict)) else value


def _literal(text: str) -> Any:
    """Read what Python writes for lists and objects, as JSON has them; None for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # code may have escapes that Python warns of
            return json.loads(json.dumps(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def messages_in(text: str) -> Any:
    """Read messages that stand in a cell: a list of them, a single one, or an object that holds a list of them.

    Returns:
        The messages as a list, or that object; a Rejection, whose reason lacks the column, if they cannot be read;
        None for any other text.
    """
    if not may_stand_for_more(text) or not any(_named(name, text) for name, _ in KEYS):
        return None
    found = decoded(text)
    if isinstance(found, str):
        both = any(all(_named(name, text) for name in names) for names in KEYS)
        whole = OBJECTS.match(text) and text.rstrip()[-1:] in ("]", "}")
        return Rejection(BROKEN) if both and whole else None
    if isinstance(found, Mapping) and ("replies" in found or not is_message(found)):  # the first message of a tree
        return found if _holds_messages(found) else None
    found = [found] if isinstance(found, Mapping) else found
    if "\\u" in text and _has_half_a_character(found):
        return Rejection("contains half of a surrogate pair", "broken text")
    return _all_messages(found)


def is_message(value: Any) -> bool:
    """Tell whether a value is a message: its speaker is one that is known, or it has the two names of messages."""
    if not isinstance(value, Mapping):
        return False
    if any(value.keys() >= {*names} for names in KEYS):
        return True
    speaker = value.get("role", value.get("from"))
    return isinstance(speaker, str) and speaker.strip().lower() in SPEAKERS and not value.keys().isdisjoint(SPEAKS)


def _all_messages(found: list[Any]) -> list[Any] | Rejection | None:
    if any(isinstance(one, list) and one and is_message(one[0]) for one in found):
        return Rejection("is a list of lists of messages written as text; write one list")
    are = [is_message(one) for one in found]
    if not any(are):
        return None
    if not all(are):
        return Rejection(f"is a list of messages written as text, and entry {are.index(False) + 1} of it is no message")
    return Rejection("is a list of messages written as text, nested too deeply") if too_deep(found) else found


def _holds_messages(found: Mapping[str, Any]) -> bool:
    """Tell whether an object is messages and what stands beside them, and no other object that has messages, too."""
    inner = [found[name] for name in HOLDERS if isinstance(found.get(name), list)]
    return {*found} <= {*HOLDERS, *BESIDE} and any(one and all(map(is_message, one)) for one in inner)


def _named(name: str, text: str) -> bool:
    return f'"{name}"' in text or f"'{name}'" in text


def _has_half_a_character(found: list[Any]) -> bool:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except RecursionError:
        return False  # it is refused for its depth
    return False
