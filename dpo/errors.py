"""The error for wrong input of the user, and helpers that quote errors and texts of others."""

import json
from unicodedata import category

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # they move the cursor, colour, reverse or break what is shown


class InputError(ValueError):
    """The user's input cannot be used. The message names the fault, its place, its value and the fix."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, for libraries that put the reason at the end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def visible(text: str) -> str:
    """Show text of others: control, format and surrogate characters as JSON escapes them; newlines stay."""
    if text.isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if c != "\n" and category(c) in UNSEEN else c for c in text)
