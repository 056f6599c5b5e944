"""The errors that a user is meant to read, and the end that was asked for; messages are whole and need no traceback."""


class InputError(Exception):
    """What the user gave cannot be used (exit code 2).

    The message says what was given, what is accepted and how to go on, in at most 20 lines.
    """


class TrainingError(Exception):
    """The run itself failed for a reason that can be named (exit code 1)."""


class RankError(Exception):
    """A process of a data-parallel run failed on its own, or does not answer; the others cannot go on (exit code 1).

    Attributes:
        own: Whether it was this process.
    """

    def __init__(self, message: str, *, own: bool = False) -> None:
        super().__init__(message)
        self.own = own


class RunInterrupt(BaseException):
    """A signal asked for the end, and everything is saved.

    Attributes:
        code: 75 (try again later) for SIGTERM and SIGUSR1, 130 for Ctrl-C.
        reason: Name of the signal.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason
