"""Exit codes, and the frame around every command that turns errors into a message and a code."""

import os
import sys
from collections.abc import Callable

from sam_runner.utils.console import is_main_process, log_to_console, print_error, print_line
from sam_runner.utils.errors import INTERRUPTED, InputError, RunInterrupt, TrainingError
from sam_runner.utils.files import FULL_DISK_ERRNOS
from sam_runner.utils.hardware import let_waiting_threads_sleep

DONE, FAILED, BAD_INPUT = 0, 1, 2  # those of runs that a signal stopped are in sam_runner.utils.errors


def run_command(command: Callable[[list[str]], int]) -> int:
    """Run a command with the arguments of the process.

    Args:
        command: Takes the arguments and returns the exit code.

    Returns:
        The exit code: that of the command, or that of the error which ended it.
    """
    log_to_console()
    let_waiting_threads_sleep()
    try:
        _require_working_folder()
        return command(sys.argv[1:])
    except InputError as error:
        print_error(str(error))
        return BAD_INPUT
    except TrainingError as error:
        print_error(str(error))
        return FAILED
    except RunInterrupt as stopped:
        return stopped.code
    except KeyboardInterrupt as stopped:  # a run names what it has kept
        if is_main_process():
            print_line(str(stopped) or "interrupted", "stderr")
        return INTERRUPTED
    except SystemExit as stop:  # argparse, after --help
        return stop.code if isinstance(stop.code, int) else DONE
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in FULL_DISK_ERRNOS:
            raise
        print_error(f"{error.strerror}: {error.filename or 'output'}\n  free some space and repeat the command")
        return FAILED


def _require_working_folder() -> None:
    """Refuse a working folder that has been deleted, since relative paths mean nothing there."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the working folder does not exist any more\n  change to another folder: cd ~") from error
