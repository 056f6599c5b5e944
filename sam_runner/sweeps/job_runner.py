"""Train the jobs of a sweep in this process: one after the other, or the seeds of one setting at once.

Imports no torch before a job is trained.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.runs.lock import is_free
from sam_runner.sweeps.claims import begun_in_this_call, claim, claim_all, mark_begun
from sam_runner.sweeps.jobs import Job, group_seeds, plan_jobs
from sam_runner.sweeps.outcomes import clear_failure, has_died, now, read_outcome, record_death, record_failure
from sam_runner.sweeps.stop_flag import read_stop_flag, set_stop_flag
from sam_runner.utils.console import (
    exit_immediately,
    is_distributed,
    is_main_process,
    log_to_console,
    report_exception,
    set_line_prefix,
)
from sam_runner.utils.errors import FolderInUseError, RankError, RunInterrupt, is_bad_input

if TYPE_CHECKING:
    from sam_runner.sam.network.joint_passes import JointPasses

log = logging.getLogger("sam_runner")
POLL_INTERVAL = 0.5  # seconds between two looks at jobs that other processes train


@dataclass(frozen=True)
class Call:
    """What the processes of one call of the command know about their sweep.

    Attributes:
        folder: Folder of the sweep.
        since: When the call began.
        stop_on_error: Whether no further job starts after one has failed.
        numbered_lines: Whether each line of the log begins with the number of its job, since other jobs run at once.
        batch_seeds: Largest number of jobs, apart in the seed only, that a process trains at once.
        verbose: Whether the epochs of a job are printed also if its lines are numbered.
    """

    folder: Path
    since: datetime
    stop_on_error: bool
    numbered_lines: bool = False
    batch_seeds: int = 1
    verbose: bool = False


def train_jobs(jobs: Sequence[Job], call: Call) -> None:
    """Train those jobs that no other process trains, and return when all of them have ended.

    Other processes, of this call or of another one, may work on the same jobs. Each takes the next free job, or the
    free jobs of the next group of seeds. A job whose process was killed before, for lack of memory for example, comes
    last: it does not keep the others from running.

    Raises:
        RunInterrupt: If a signal stopped a job; it has saved.
    """
    waiting = group_seeds(jobs, call.batch_seeds)
    if not is_distributed():
        waiting.sort(key=lambda group: any(has_died(call.folder, job) for job in group))
    while waiting:
        left: list[tuple[Job, ...]] = []
        for group in waiting:
            if _read_stop_reason(call, group[0]):
                return
            if is_distributed():  # one process group, and no other process of this call
                train_job(group[0], call)
            elif not_ended := _train_free_jobs(group, call):
                left.append(not_ended)
        waiting = left
        if waiting:
            time.sleep(POLL_INTERVAL)


def _read_stop_reason(call: Call, job: Job) -> str:
    reason = read_stop_flag(call.folder)
    if not is_distributed():
        return reason
    from sam_runner.distributed.torchrun import broadcast_from_main

    return broadcast_from_main(f"stopped/{job.number}", reason)


def _train_free_jobs(group: Sequence[Job], call: Call) -> tuple[Job, ...]:
    """Train the jobs of a group that no other process trains. Returns the jobs that have not ended."""
    waiting = [job for job in group if read_outcome(call.folder, job, call.since) is None]
    if not waiting:
        return ()
    with claim_all(call.folder, [job.fingerprint for job in waiting]) as claimed, ExitStack() as stack:
        free = [job for job in waiting if job.fingerprint in claimed and is_free(job.folder)]
        not_ended = [job for job in waiting if job not in free]
        chosen = []
        for job in free:
            if read_outcome(call.folder, job, call.since) is not None:  # it has ended before it was claimed
                continue
            if begun_in_this_call(call.folder, job.fingerprint):  # it would kill this process too
                record_death(call.folder, job)
                continue
            stack.enter_context(mark_begun(call.folder, job.fingerprint))
            chosen.append(job)
        not_ended += train_together(chosen, call)
    return tuple(not_ended)


def train_together(jobs: Sequence[Job], call: Call) -> list[Job]:
    """Train jobs at once in this process, each in a thread, with joint passes. A single job needs no thread.

    Returns:
        The jobs whose run folder another process uses; they have not been trained.

    Raises:
        RunInterrupt: If a signal stopped a job; it has saved.
    """
    if len(jobs) > 1:
        from sam_runner.models.outputs import get_logits
        from sam_runner.sam.network.joint_passes import JointPasses
        from sam_runner.utils.signals import catch_stop_signals

        joint = JointPasses(get_logits)
        with catch_stop_signals():
            errors = joint.run([partial(train_job, job, call, joint) for job in jobs])
        for error in errors:
            if error is not None and not isinstance(error, FolderInUseError):
                raise error
        return [job for job, error in zip(jobs, errors, strict=True) if error is not None]
    for job in jobs:
        try:
            train_job(job, call)
        except FolderInUseError:
            return [job]
    return []


def train_job(job: Job, call: Call, joint: "JointPasses | None" = None) -> None:
    """Train a job; an error is recorded in the sweep's folder, and the sweep continues.

    Args:
        job: The job.
        call: The call of the command.
        joint: Makes one pass for this job and those in other threads; None: the job makes its own passes.

    Raises:
        RunInterrupt: If a signal stopped the job; it has saved.
        FolderInUseError: If another process writes into the run folder.
    """
    if call.numbered_lines:
        set_line_prefix(f"[{job.number}] ", details=call.verbose)
    log.info("job %d: %s", job.number, job.folder.name)
    if is_main_process():
        clear_failure(call.folder, job)
    try:
        from sam_runner.runs.start import start_run

        start_run(job.config, job.overrides, job.folder, joint)
    except BrokenPipeError:
        raise
    except RankError as error:
        exit_immediately(error)
    except Exception as error:
        if isinstance(error, FolderInUseError) and not is_distributed():
            raise
        message, text = report_exception(error)
        if is_main_process():
            record_failure(call.folder, job, "refused" if is_bad_input(error) else "failed", message, text)
            if call.stop_on_error:
                set_stop_flag(call.folder, "failure")
    finally:
        set_line_prefix("")


def run_job(cfg: Any, hydra_config: Any, overrides: list[str]) -> None:
    """Train a job of a sweep in a process that a launcher has started.

    Args:
        cfg: The composed configuration of the job, which was valid where the sweep was started.
        hydra_config: Hydra's own settings.
        overrides: Settings of the job as the user typed them.
    """
    folder, number = Path(hydra_config.sweep.dir), hydra_config.job.num
    leave_ctrl_c_to_parent()
    os.environ["SAM_RUNNER_JOB"] = str(number)  # chooses one of several GPUs
    log_to_console()
    set_line_prefix(f"[{number + 1}] ")
    config = load_experiment(plain_settings(cfg), overrides, multirun=True).with_absolute_paths()
    (job,), _ = plan_jobs(folder, [(overrides, config)], first=number + 1)
    call = Call(folder, now(), cfg.sweep.on_error == "stop", numbered_lines=True, verbose=True)
    try:
        while not read_stop_flag(folder):
            with claim(folder, job.fingerprint) as is_claimed:
                # The outcome of the job is not asked for: one that was put back into the queue has an outcome already.
                if is_claimed and is_free(job.folder):
                    with contextlib.suppress(FolderInUseError), mark_begun(folder, job.fingerprint):
                        train_job(job, call)
                        return
            time.sleep(POLL_INTERVAL)  # another call trains the job
    except RunInterrupt as stop:
        if stop.reason == "SIGUSR2":  # submitit's handler is active again and puts the job back into the queue
            signal.raise_signal(signal.SIGUSR2)


def leave_ctrl_c_to_parent() -> None:
    """Ignore Ctrl-C outside a run: the process that started this one ends the sweep."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
