"""How the jobs of a sweep ended, read from and written to the sweep's folder, which every process of the sweep sees.

``status.json`` in a run folder names the call of the command that the run belongs to. A job that has no run, because
its settings were refused for example, has ``status.json`` and ``run.log`` in a folder below ``not_started/``.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from sam_runner.runs.folder import NOT_STARTED, find_job_folder, find_job_folders, job_name, settings_of_run
from sam_runner.runs.lock import is_locked
from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import call_name, read_status, write_status
from sam_runner.sweeps.claims import begun_file, begun_in_this_call, claim
from sam_runner.sweeps.jobs import Job, Typed, hash_words
from sam_runner.sweeps.stop_flag import stop_file
from sam_runner.utils.errors import INTERRUPTED, PREEMPTED
from sam_runner.utils.files import write_bytes, write_json

FAILED_STATES = ("failed", "refused", "not run", "died")
STOP_CODES = {"preempted": PREEMPTED, "interrupted": INTERRUPTED}


class JobOutcome(NamedTuple):
    """How a job of a sweep ended.

    Attributes:
        name: Settings of the job as the user typed them.
        state: ``status`` of status.json; "died" for a process that ended without writing one; "" for a job that this
            call of the command has neither run nor found finished.
        error: Error message, "" if there is none.
    """

    name: str
    state: str
    error: str


def record_refusal(sweep_folder: Path, overrides: Typed, error: str) -> None:
    """Record that the settings of a job are not valid."""
    digest = hash_words(overrides)
    _record(sweep_folder, job_name([], settings_of_run(overrides), digest), overrides, "refused", error, error)


def record_failure(sweep_folder: Path, job: Job, state: str, error: str, log: str) -> None:
    """Record that a job failed. If its run has recorded the failure itself, only the name of the job is added there.

    Args:
        sweep_folder: Folder of the sweep.
        job: The job.
        state: "failed", "refused", "not run" or "died".
        error: Error message for status.json.
        log: Full text of the error for run.log.
    """
    status = read_status(job.folder)
    if status.get("call") == call_name() and status.get("status") == "failed":
        write_json(job.folder / "status.json", status | {"job": job.overrides_text})
        return
    _record(sweep_folder, job.folder.name, job.overrides, state, error, log)


def _record(sweep_folder: Path, name: str, overrides: Typed, state: str, error: str, log: str) -> None:
    parent = sweep_folder / NOT_STARTED
    folder = find_job_folder(parent, name.rpartition("-")[2]) or parent / name
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "run.log", f"{log}\n".encode())
    write_status(folder, state, exit_code=1, error=error, job=" ".join(overrides))


def record_deaths(sweep_folder: Path, jobs: Sequence[Job]) -> None:
    """Record the jobs of this call whose process was killed before their run began.

    A process that holds a claim must not call the function: it would lose the claim.
    """
    for job in jobs:
        if begun_in_this_call(sweep_folder, job.fingerprint):
            with claim(sweep_folder, job.fingerprint) as is_claimed:
                if is_claimed:
                    record_death(sweep_folder, job)


def record_death(sweep_folder: Path, job: Job) -> None:
    """Record that a process died which had begun a job of this call; this process holds the job's claim."""
    if read_outcome(sweep_folder, job, now()) is None:
        error = "its process was ended before the run began, for lack of memory perhaps"
        record_failure(sweep_folder, job, "died", error, error)
    begun_file(sweep_folder, job.fingerprint).unlink(missing_ok=True)


def has_died(sweep_folder: Path, job: Job) -> bool:
    """Return whether a process that trained the job was killed, in this call or an earlier one."""
    status, failure = read_status(job.folder), find_job_folder(sweep_folder / NOT_STARTED, job.fingerprint)
    return (
        begun_file(sweep_folder, job.fingerprint).exists()
        or (status.get("status") == "running" and is_locked(job.folder, str(status.get("host"))) is False)
        or (failure is not None and read_status(failure).get("status") == "died")
    )


def clear_failure(sweep_folder: Path, job: Job) -> None:
    """Delete what was recorded below ``not_started/`` of a job in an earlier call."""
    for digest in job.digests:
        if folder := find_job_folder(sweep_folder / NOT_STARTED, digest):
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        (sweep_folder / NOT_STARTED).rmdir()


def read_outcome(
    sweep_folder: Path, job: Job, since: datetime, failures: Mapping[str, Path] | None = None
) -> JobOutcome | None:
    """Return how a job ended for this call of the command, None if it has to be run or is run by another process.

    A job that failed in another call counts if it failed after this call began: it is not tried twice.

    Args:
        sweep_folder: Folder of the sweep.
        job: The job.
        since: When this call began.
        failures: `find_job_folders` of the folder ``not_started/``, for a reader of many jobs; None looks for the job.
    """
    if read_finished_result(job.folder) is not None:
        return JobOutcome(job.overrides_text, "finished", "")
    failures = find_job_folders(sweep_folder / NOT_STARTED) if failures is None else failures
    failure = failures.get(job.fingerprint)
    for folder in filter(None, (job.folder, failure)):
        status = read_status(folder)
        state, is_own = str(status.get("status")), status.get("call") == call_name()
        if state == "running" and is_own and is_locked(folder, str(status.get("host"))) is False:
            state = "died"
        is_over = state in (*FAILED_STATES, *STOP_CODES) if is_own else state in FAILED_STATES
        if is_over and (is_own or _is_later(status, since)):
            return JobOutcome(job.overrides_text, state, str(status.get("error", "")))
    return None


def _is_later(status: dict[str, Any], since: datetime) -> bool:
    try:
        return datetime.fromisoformat(str(status.get("time"))) > since
    except (ValueError, TypeError):
        return False


def now() -> datetime:
    """Return the time in UTC, in whole seconds as in status.json."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def read_outcomes(sweep_folder: Path, jobs: Sequence[Job], since: datetime) -> list[JobOutcome | None]:
    """Return what `read_outcome` does for each job."""
    failures = find_job_folders(sweep_folder / NOT_STARTED)
    return [read_outcome(sweep_folder, job, since, failures) for job in jobs]


def read_refusals(sweep_folder: Path) -> list[JobOutcome]:
    """Return the jobs whose settings were refused in this call, in the order of their folders' names."""
    statuses = [read_status(path.parent) for path in sorted(sweep_folder.glob(f"{NOT_STARTED}/*/status.json"))]
    return [
        JobOutcome(str(status.get("job")), "refused", str(status.get("error", "")))
        for status in statuses
        if status.get("call") == call_name() and status.get("status") == "refused"
    ]


def choose_exit_code(outcomes: Sequence[JobOutcome]) -> int:
    """Return 130 or 75 if a signal stopped a job, 1 if a job failed, else 0."""
    stop_codes = [STOP_CODES[outcome.state] for outcome in outcomes if outcome.state in STOP_CODES]
    return max(stop_codes, default=int(any(outcome.state != "finished" for outcome in outcomes)))


def read_objective(job: Job) -> float | None:
    """Return the objective that a search maximises: the ``early_stopping.metric`` at the end of the job's run.

    Returns:
        An accuracy in [0, 1], or minus a negative log-likelihood; None if the run has not finished.
    """
    metric = job.config.early_stopping.metric
    value = (read_finished_result(job.folder) or {}).get("final", {}).get(metric)
    if value is None:
        return None
    return -float(value) if metric.endswith("/nll") else float(value)


def remove_leftovers(sweep_folder: Path) -> None:
    """Delete the stop flag, Hydra's multirun.yaml and, if the sweep left nothing else, the sweep's folder."""
    for path in (stop_file(sweep_folder), sweep_folder / "multirun.yaml"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder is not empty
        os.removedirs(sweep_folder)
