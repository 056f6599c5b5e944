"""Console output of a run: log lines on stdout, errors on stderr, and only from one process under torchrun."""

import contextlib
import logging
import os
import sys
import traceback
from contextvars import ContextVar
from typing import NoReturn

from sam_runner.utils.errors import InputError, RankError, TrainingError, find_memory_error
from sam_runner.utils.files import FULL_DISK_ERRNOS

LESS_MEMORY = "use a smaller batch_size or accumulate=2, a smaller model or data set; dry_run=true estimates the memory"
MAX_ERROR_LINES = 18
DETAIL = {"is_detail": True}  # `extra` of a message that the console leaves out where several jobs run at once
_line_prefix: ContextVar[str] = ContextVar("line_prefix", default="")
_shows_details: ContextVar[bool] = ContextVar("shows_details", default=True)


def is_distributed() -> bool:
    """Return whether torchrun has started several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_main_process() -> bool:
    """Return whether this process writes to the console: rank 0 under torchrun, otherwise the only process."""
    return not is_distributed() or os.environ.get("RANK", "0") == "0"


def print_error(message: str, *, any_rank: bool = False) -> None:
    """Print an error on stderr, cut to `MAX_ERROR_LINES` lines.

    Args:
        message: The problem in the first line, accepted values and a way out in the lines after it.
        any_rank: Print on every rank that calls the function; by default only rank 0 prints.
    """
    if not (any_rank or is_main_process()):
        return
    lines = message.splitlines() or [""]
    _print_on_stderr("\n".join([f"error: {lines[0]}", *lines[1:MAX_ERROR_LINES]]))


def _print_on_stderr(text: str) -> None:
    with contextlib.suppress(OSError):  # the reader of a pipe has closed it, or the disk of a file is full
        print(text, file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable in every environment.

    A stream that the caller has closed is opened on the null device, so that no other file gets its number and prints
    do not fail. A character that a terminal cannot show, and a byte of a path that is not UTF-8, becomes an escape
    sequence.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        stream = getattr(sys, name)
        if stream is None:
            null = open(os.devnull, "r+", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - stays open
            setattr(sys, name, null)
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun, "1 job" or "3 jobs", for nouns whose plural ends in s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float, *, is_rough: bool = False) -> str:
    """Return a duration such as "2.5 s", "40 s", "12 min 5 s", "3 h 20 min" or "2.1 days".

    Args:
        seconds: The duration.
        is_rough: One unit and about two digits, for an estimate: "40 s", "12 min", "3.3 h".
    """
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if is_rough and seconds >= 90:
        return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
    if is_rough:
        return f"{max(1, round(seconds))} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def print_line(text: str, stream: str = "stdout") -> None:
    """Print a line above a progress bar if there is one.

    Args:
        text: The line.
        stream: "stdout" or "stderr".
    """
    from tqdm import tqdm

    try:
        tqdm.write(text, file=getattr(sys, stream))
        getattr(sys, stream).flush()
    except OSError:  # the reader of a pipe (`| head`) has closed it; the run continues without output
        null = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - stays open
        setattr(sys, stream, null)


def log_to_console() -> None:
    """Print the messages of the program's logger on stdout, one line each, above a progress bar if there is one."""

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "is_detail") and not _shows_details.get():
                return
            print_line(_line_prefix.get() + self.format(record))

    prepare_streams()
    logger = logging.getLogger("sam_runner")
    logger.handlers = [Console() if is_main_process() else logging.NullHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def set_line_prefix(prefix: str, *, details: bool = True) -> None:
    """Choose how this thread prints the lines of its log.

    Args:
        prefix: Text before each line; it names the job if several of a sweep run at once.
        details: Whether messages with `DETAIL` are printed too.
    """
    _line_prefix.set(prefix)
    _shows_details.set(details)


def report_exception(error: Exception, less_memory: str = LESS_MEMORY) -> tuple[str, str]:
    """Print an exception: one message if its reason is known, otherwise the traceback.

    The reason is known of an `InputError` and a `TrainingError`, of a full disk and of memory that the system refused.

    Args:
        error: The exception.
        less_memory: What the command can do with less memory.

    Returns:
        The error's message, and the text to store: the same message, or the traceback.
    """
    message = f"{type(error).__name__}: {error}"
    if (refused := find_memory_error(error)) is not None:
        reason = str(refused).splitlines() or ["the system has no more"]
        print_error(f"out of memory: {reason[0][:200]}\n  {less_memory}")
    elif isinstance(error, InputError | TrainingError):
        print_error(str(error))
        return str(error), str(error)
    elif isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        print_error(f"{error.strerror}: {error.filename or 'output'}\n  free some space and repeat the command")
    else:
        _print_on_stderr(traceback.format_exc().rstrip())
    return message, traceback.format_exc()


def exit_immediately(error: RankError) -> NoReturn:
    """Print the error and terminate this process with exit code 1, without clean-up.

    A normal exit destroys the process group, which waits for ranks that no longer run.
    """
    if error.is_local and not error.is_explained and not isinstance(error.__cause__, InputError):
        _print_on_stderr(traceback.format_exc().rstrip())
    print_error(str(error), any_rank=error.is_local)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
