"""The last lines that sam-train prints: the commands to type next, one a line, for the working folder."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.runs.environment import format_command, read_command, train_command
from sam_runner.utils.console import is_distributed, is_main_process


def print_next_step(commands: Sequence[str]) -> None:
    """Print the commands in the main process."""
    for command in commands if is_main_process() else ():
        print(f"next: {command}", flush=True)


def after_run(folder: Path, config: ExperimentConfig) -> list[str]:
    """Return the commands for a finished run: its metrics, its curves, another seed, and the run made longer.

    Args:
        folder: The run folder.
        config: Its settings.
    """
    name, trust, train = _quote(folder), trust_prefix(config.to_dict()), train_command(config.world_size)
    longer = f"epochs={2 * config.epochs}"  # with max_steps too: the smaller of the two numbers of steps ends a run
    longer += "" if config.max_steps is None else f" max_steps={2 * config.max_steps}"
    return [
        f"{trust}sam-eval {name}",
        *_board(folder, "events.*"),
        f"{trust}{train} {_quote(f'config={folder}')} seed={config.seed + 1}",
        f"{trust}{train} {_quote(f'resume={folder}')} {longer}",
    ]


def after_sweep(folder: Path, code: int, *, is_named: bool, can_repeat: bool = True) -> list[str]:
    """Return the commands for a sweep: its report, or what runs the missing jobs.

    Args:
        folder: Folder of the sweep.
        code: Exit code of the command.
        is_named: Whether the user has given the name of the sweep.
        can_repeat: Whether the same command runs the missing jobs; not where their settings are refused.
    """
    if code:
        return [*([_repeat(folder, is_named=is_named)] if can_repeat else []), f"sam-status {_quote(folder)}"]
    return [*_open(folder / "report.html"), *_board(folder, "*/events.*")]


def _repeat(folder: Path, *, is_named: bool) -> str:
    """Return the command that runs the missing jobs of a sweep."""
    added = [] if is_named else [f"sweep_name={folder.name}"]
    if is_distributed():  # the words of torchrun are not known
        return " ".join(["the same command", *(["with", *added] if added else []), "runs what is missing"])
    return format_command([*read_command(), *added])


def _open(page: Path) -> list[str]:
    """Return the command that shows a page in a browser, none on a machine without one."""
    programs = ("open",) if sys.platform == "darwin" else ("xdg-open",)
    return [f"{program} {_quote(page)}" for program in programs if shutil.which(program)]


def _board(folder: Path, events: str) -> list[str]:
    """Return the command that shows the curves, none without files of TensorBoard."""
    return [f"tensorboard --logdir {_quote(folder)}"] if any(folder.glob(events)) else []


def _quote(path: Path | str) -> str:
    """Return a path as a word of a shell that no command reads as a flag."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
