"""The one error that is the user's to mend, and how the errors of others are quoted."""


class InputError(ValueError):
    """What was given cannot be used. The message says what, where, its value, and what to do about it."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line, where a library tells the reason at the end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
