"""How the jobs of a sweep ended, read from and written to the sweep's folder, which every process of the sweep sees.

``status.json`` in a run folder names the call of the command that the run belongs to. A job that has no run, because
its settings were refused for example, has ``status.json`` and ``run.log`` in a folder below ``not_started/``.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sam_runner.runs.folder import NOT_STARTED, job_folder
from sam_runner.runs.lock import is_locked
from sam_runner.runs.result import find_finished_duplicate, read_finished_result
from sam_runner.runs.status import call_name, read_status, write_status
from sam_runner.sweeps.stop_flag import STOP_FILE
from sam_runner.utils.errors import INTERRUPTED, PREEMPTED
from sam_runner.utils.files import write_atomically, write_json

FAILED_STATES = ("failed", "refused", "not run", "died", "running")  # after the sweep no job can be running
STOP_CODES = {"preempted": PREEMPTED, "interrupted": INTERRUPTED}


class JobOutcome(NamedTuple):
    """How a job of a sweep ended.

    Attributes:
        name: Settings of the job as the user typed them, or the name of its run folder.
        state: ``status`` of status.json, or "died" for a process that ended without writing one.
        error: Error message, "" if there is none.
    """

    name: str
    state: str
    error: str


def record_failure(sweep_folder: Path, overrides: Sequence[str], state: str, error: str, log: str) -> None:
    """Record that a job failed. If its run has recorded the failure itself, only the name of the job is added there.

    Args:
        sweep_folder: Folder of the sweep.
        overrides: Settings of the job as the user typed them.
        state: "failed", "refused" or "not run".
        error: Error message for status.json.
        log: Full text of the error for run.log.
    """
    job = " ".join(overrides)
    run_folder = job_folder(sweep_folder, overrides)
    status = read_status(run_folder)
    if status.get("call") == call_name() and status.get("status") == "failed":
        write_json(run_folder / "status.json", status | {"job": job})
        return
    folder = _failure_folder(sweep_folder, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "run.log", lambda handle: handle.write(f"{log}\n".encode()))
    write_status(folder, state, exit_code=1, error=error, job=job)


def clear_failure(sweep_folder: Path, overrides: Sequence[str]) -> None:
    """Delete what `record_failure` recorded of a job in an earlier call."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_failure_folder(sweep_folder, overrides))
        (sweep_folder / NOT_STARTED).rmdir()


def _failure_folder(sweep_folder: Path, overrides: Sequence[str]) -> Path:
    return sweep_folder / NOT_STARTED / job_folder(sweep_folder, overrides).name


def read_outcomes(sweep_folder: Path) -> list[JobOutcome]:
    """Return the outcomes of the jobs of this call, in the order of their folders' names."""
    outcomes = []
    for path in sorted([*sweep_folder.glob("*/status.json"), *sweep_folder.glob(f"{NOT_STARTED}/*/status.json")]):
        folder, status = path.parent, read_status(path.parent)
        if status.get("call") == call_name():
            state = str(status.get("status"))
            if state == "running" and is_locked(folder, str(status.get("host"))) is False:
                state = "died"
            outcomes.append(JobOutcome(str(status.get("job", folder.name)), state, str(status.get("error", ""))))
    return outcomes


def choose_exit_code(outcomes: Sequence[JobOutcome]) -> int:
    """Return 130 or 75 if a signal stopped a job, 1 if a job failed, else 0."""
    stop_codes = [STOP_CODES[outcome.state] for outcome in outcomes if outcome.state in STOP_CODES]
    return max(stop_codes, default=int(any(outcome.state in FAILED_STATES for outcome in outcomes)))


def read_objective(sweep_folder: Path, overrides: Sequence[str], fingerprint: str) -> float | None:
    """Return the objective that a search maximises: the validation accuracy at the end of the job's run.

    Args:
        sweep_folder: Folder of the sweep.
        overrides: Settings of the job as the user typed them.
        fingerprint: Fingerprint of the job's settings, to find another job with the same settings.

    Returns:
        The accuracy in [0, 1], or None if there is no finished run or no validation set.
    """
    result = read_finished_result(job_folder(sweep_folder, overrides))
    if result is None:
        duplicate = find_finished_duplicate(sweep_folder, fingerprint)
        result = read_finished_result(duplicate) if duplicate else None
    value = (result or {}).get("final", {}).get("validation/accuracy")
    return None if value is None else float(value)


def remove_leftovers(sweep_folder: Path) -> None:
    """Delete the stop flag, Hydra's multirun.yaml and, if the sweep left nothing else, the sweep's folder."""
    for name in (STOP_FILE, "multirun.yaml"):
        (sweep_folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder is not empty
        os.removedirs(sweep_folder)
