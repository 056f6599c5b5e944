"""What a run says while it runs: plain lines on stdout, errors on stderr."""

import logging
import os
import sys
import traceback
from typing import NoReturn

from sam_runner.utils.errors import InputError, RankError, TrainingError


def is_distributed() -> bool:
    """Whether torchrun has started other processes beside this one."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_main_process() -> bool:
    """Whether this process speaks for all those that torchrun has started."""
    return not is_distributed() or os.environ.get("RANK", "0") == "0"


def print_error(message: str, *, anyway: bool = False) -> None:
    """An error on stderr, at most 18 lines; of several processes the first tells it, or `anyway` this one."""
    if not (anyway or is_main_process()):
        return
    lines = message.splitlines()
    print("\n".join([f"error: {lines[0]}", *lines[1:18]]), file=sys.stderr)


def log_to_console(cell: str = "") -> None:
    """One plain line a message on stdout, above a progress bar if there is one.

    Args:
        cell: What names the cell in each line, where several run at once.
    """

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from tqdm import tqdm

            try:
                tqdm.write(cell + self.format(record), file=sys.stdout)
                sys.stdout.flush()
            except OSError:  # whoever read the output is gone; the run goes on
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    logger = logging.getLogger("sam_runner")
    logger.handlers = [Console() if is_main_process() else logging.NullHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def report_exception(error: Exception) -> tuple[str, str]:
    """Print an error; its message, and all that is to be kept of it."""
    if isinstance(error, InputError | TrainingError):
        print_error(str(error))
        return str(error), str(error)
    traceback.print_exc()
    return f"{type(error).__name__}: {error}", traceback.format_exc()


def exit_immediately(error: RankError) -> NoReturn:
    """End this process with code 1: others need it to go on, and an orderly end would wait for some that are gone."""
    if error.own and not isinstance(error.__cause__, InputError):
        traceback.print_exc()
    print_error(str(error), anyway=error.own)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
