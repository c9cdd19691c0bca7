"""The error for wrong input of the user, and helpers that quote errors of other libraries."""


class InputError(ValueError):
    """The user's input cannot be used. The message names the fault, its place, its value and the fix."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, for libraries that put the reason at the end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
