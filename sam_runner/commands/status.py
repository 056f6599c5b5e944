"""`sam-status`: how far sweeps and runs are. Imports no torch."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam_runner.commands.arguments import Parser, path
from sam_runner.commands.exit_codes import DONE, run_command
from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.runs.environment import train_command
from sam_runner.runs.folder import NOT_STARTED
from sam_runner.runs.plan import PLAN
from sam_runner.runs.result import read_finished_result, summarise_result
from sam_runner.sweeps.claims import is_call_alive
from sam_runner.sweeps.progress import JobState, SweepProgress, read_state
from sam_runner.utils.console import format_duration
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import SETTINGS_FILE
from sam_runner.utils.yaml import read_yaml


def main() -> int:
    """Run `sam-status FOLDER...`. Returns the exit code."""
    return run_command(status)


def status(arguments: list[str]) -> int:
    """Print how far some sweeps and runs are."""
    parser = Parser("sam-status", "Tell how far sweeps and runs are, also while they run, from any terminal.")
    parser.add_argument(
        "folders", type=path, nargs="*", default=[Path("outputs")], metavar="FOLDER",
        help="sweeps, runs, or folders that contain them at any depth (default: outputs)",
    )  # fmt: skip
    for folder in parser.parse(arguments).folders:
        for found in _list_inside(folder, set()) or [folder]:
            for line in describe_sweep(found) if _is_sweep(found) else describe_run(found):
                print(line)
    return DONE


def _is_sweep(folder: Path) -> bool:
    return (folder / PLAN).is_file() or (folder / NOT_STARTED).is_dir()


def _list_inside(folder: Path, seen: set[Path]) -> list[Path]:
    """Return the sweep or run that a folder is, or else those below it, by name; what links name again is left out.

    Args:
        folder: The folder.
        seen: The folders that were visited before, without links; this one and those below it are added.
    """
    try:
        place = folder.resolve()
        if place in seen:
            return []
        seen.add(place)
        if _is_sweep(folder) or (folder / SETTINGS_FILE).is_file():
            return [folder]
        inner = sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path))
        return [found for below in inner if below.is_dir() for found in _list_inside(below, seen)]
    except OSError:  # no folder, or one that may not be read
        return []


def describe_sweep(folder: Path) -> Iterator[str]:
    """Yield a line about a sweep, and one about each job that runs or has ended without a result.

    Args:
        folder: Folder of the sweep.
    """
    progress = SweepProgress(folder)
    progress.update()
    yield f"{folder}: {progress.line()}"
    for job in progress.states:
        if job.state not in ("waiting", "finished"):
            yield f"  {_describe(job)}"
    if progress.count("running") or progress.count("finished") == len(progress.states):
        return
    if is_call_alive(folder):
        yield "  starting: the command of the sweep is running, and no job yet"
        return
    if progress.count("finished", "refused") < len(progress.states):
        yield f"  nothing is running; the same command with sweep_name={folder.name} continues the sweep"
    else:
        yield "  nothing is running; refused jobs need other settings"


def describe_run(folder: Path) -> Iterator[str]:
    """Yield a line about a run, and one with the command that continues it.

    Args:
        folder: The run folder.

    Raises:
        InputError: If the folder holds neither a sweep nor a run.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise InputError(
            f"{folder} holds neither a sweep nor a run\n  give the folder of a sweep, outputs/sweeps/<sweep_name>, or"
            " of a run"
        )
    settings = read_yaml(folder / SETTINGS_FILE)
    settings = settings if isinstance(settings, dict) else {}
    epochs, world_size = settings.get("epochs", 1), settings.get("world_size", 1)
    job = replace(read_state(folder, epochs), name=str(folder))
    result = read_finished_result(folder)
    yield _describe(job) if result is None else f"{_describe(job)}: {summarise_result(result)}"
    if job.state in ("died", "interrupted", "preempted"):
        train = f"{trust_prefix(settings)}{train_command(world_size)}"
        yield f"  to continue it: {train} resume={shlex.quote(str(folder))}"


def _describe(job: JobState) -> str:
    """Return state, name and progress of a run; for one that runs also when it ends and where it runs."""
    details: dict[str, Any] = job.status or {}
    parts = [f"{job.state:11} {job.name}"]
    if job.state not in ("finished", "failed", "refused", "not run"):
        parts.append(f"epoch {int(job.done)} of {job.epochs}")
    if job.state == "running":
        if job.paid_cost and job.seconds:
            seconds = job.seconds_left(job.seconds / job.paid_cost)
            parts.append(f"about {format_duration(seconds, is_rough=True)} left")
        parts.append(f"process {details.get('pid')} on {details.get('host')}")
    error = str(details.get("error", "")).partition("\n")[0]
    return ", ".join([*parts, *filter(None, [error])])
