"""The one error that is the user's to mend."""


class InputError(ValueError):
    """What was given cannot be used. The message says what, where, its value, and what to do about it."""
