"""The last line that sam-train prints: what to type next."""

import shlex
from pathlib import Path

from sam_runner.utils.console import is_main_process


def print_next_step(text: str) -> None:
    """Print the line in the main process."""
    if text and is_main_process():
        print(f"next: {text}", flush=True)


def after_run(folder: Path) -> str:
    """Return the commands for a finished run.

    Args:
        folder: The run folder.
    """
    name = shlex.quote(str(folder))
    board = [f"tensorboard --logdir {name}"] if any(folder.glob("events.*")) else []  # not with logger=csv
    return ", ".join([f"sam-eval {name}", *board, f"sam-train config={name} seed=1 (another seed)"])


def after_sweep(folder: Path, code: int, is_named: bool) -> str:
    """Return the commands for a sweep.

    Args:
        folder: Folder of the sweep.
        code: Exit code of the command.
        is_named: Whether the user has given the name of the sweep.
    """
    name = shlex.quote(str(folder))
    again = "the same command" if is_named else f"the same command with sweep_name={shlex.quote(folder.name)}"
    if code:
        return f"{again} runs what is missing, sam-status {name} tells how far the sweep is"
    board = f"tensorboard --logdir {name}, " if any(folder.glob("*/events.*")) else ""
    return f"open {name}/report.html, {board}{again} with more values runs only the new jobs"
