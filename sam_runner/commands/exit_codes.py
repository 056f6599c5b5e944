"""Exit codes, and the frame around every command that turns errors into a message and a code."""

import os
import sys
from collections.abc import Callable

from sam_runner.utils.console import is_main_process, log_to_console, print_line, report_exception
from sam_runner.utils.errors import INTERRUPTED, InputError, RunInterrupt, is_bad_input
from sam_runner.utils.hardware import let_waiting_threads_sleep

DONE, FAILED, BAD_INPUT = 0, 1, 2  # those of runs that a signal stopped are in sam_runner.utils.errors
LESS_MEMORY_FOR_MODELS = "free some memory, or give another --device"
LESS_MEMORY_FOR_MEASURES = "give fewer --examples, free some memory, or give another --device"


def run_command(command: Callable[[list[str]], int], less_memory: str = "free some memory") -> int:
    """Run a command with the arguments of the process.

    Args:
        command: Takes the arguments and returns the exit code.
        less_memory: What to do if the system refuses memory.

    Returns:
        The exit code: that of the command, or that of the error which ended it.
    """
    log_to_console()
    let_waiting_threads_sleep()
    try:
        _require_working_folder()
        return command(sys.argv[1:])
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
    except Exception as error:
        report_exception(error, less_memory)
        return exit_code_of(error)


def exit_code_of(error: Exception) -> int:
    """Return the exit code of a command that an error has ended."""
    return BAD_INPUT if is_bad_input(error) else FAILED


def _require_working_folder() -> None:
    """Refuse a working folder that has been deleted, since relative paths mean nothing there."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the working folder does not exist any more\n  change to another folder: cd ~") from error
