"""Exceptions whose message is complete for the user, so that commands print it without a traceback."""

PREEMPTED, INTERRUPTED = 75, 130  # exit codes: stopped by a signal after saving (try again), and by Ctrl-C
MEMORY_ERRORS = (
    "can't allocate memory", "Storage size calculation overflowed",  # of torch's allocator on a CPU
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


class InputError(Exception):
    """Settings, files or arguments given by the user cannot be used (exit code 2).

    The message says what was given, what is accepted and which command fixes it, in at most 20 lines.
    """


class MissingDataError(InputError):
    """The files of a data set are not there."""


class FolderInUseError(InputError):
    """Another process writes into the run folder."""


class TrainingError(Exception):
    """A run failed for a known reason, such as a non-finite loss or a full disk (exit code 1)."""


class RankError(Exception):
    """One process of a data-parallel run failed or does not respond, so the others cannot continue (exit code 1).

    Attributes:
        is_local: Whether the failure happened in this process, or no other process is left to report it.
        is_explained: Whether the message says all, so that no traceback is printed.
    """

    def __init__(self, message: str, *, is_local: bool = False, is_explained: bool = False) -> None:
        super().__init__(message)
        self.is_local, self.is_explained = is_local, is_explained


class RunInterrupt(BaseException):
    """A signal ended the run after its state was saved.

    Like KeyboardInterrupt it is no Exception, so that handlers of errors let it pass.

    Attributes:
        code: Exit code: `PREEMPTED` for SIGTERM, SIGUSR1 and SIGUSR2, `INTERRUPTED` for Ctrl-C.
        reason: Name of the signal, e.g. ``SIGTERM``.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def find_memory_error(error: BaseException | None) -> BaseException | None:
    """Return the error that says that memory was refused: an error, or one that it was raised from; None without one.

    On a CPU torch has only the text of a RuntimeError for it.
    """
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return error
        if isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_ERRORS):
            return error
        error = error.__cause__
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_bad_input(error: BaseException) -> bool:
    """Return whether an error refuses what the user gave. An `InputError` for lack of memory does not."""
    return isinstance(error, InputError) and find_memory_error(error) is None
