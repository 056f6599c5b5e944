"""The errors that a user is meant to read; they carry the whole message and need no traceback."""


class InputError(Exception):
    """What the user gave cannot be used (exit code 2).

    The message says what was given, what is accepted and how to go on, in at most 20 lines.
    """


class TrainingError(Exception):
    """The run itself failed for a reason that can be named (exit code 1)."""
