"""One job of a sweep, in this process or in a process of a launcher. Imports no torch before the settings are valid."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.config.hydra import launchers
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.config.rules import require_files
from sam_runner.runs.folder import job_folder
from sam_runner.runs.lock import wait_until_free
from sam_runner.sweeps.outcomes import clear_failure, read_objective, record_failure
from sam_runner.sweeps.stop_flag import read_stop_flag, set_stop_flag
from sam_runner.utils.console import exit_immediately, is_distributed, is_main_process, log_to_console, report_exception
from sam_runner.utils.errors import FolderInUseError, InputError, RankError, RunInterrupt

log = logging.getLogger("sam_runner")


def run_job(cfg: Any, hydra_config: Any, overrides: list[str], codes: list[int]) -> float | None:
    """Run a job of a sweep; an error is recorded in the sweep's folder, and the sweep continues.

    Args:
        cfg: The composed configuration of the job.
        hydra_config: Hydra's own settings.
        overrides: Settings of the job as the user typed them.
        codes: List to which the exit code of a failed dry run is appended; a dry run writes no files.

    Returns:
        The objective of a search; None in a sweep that is no search.
    """
    folder, in_subprocess = Path(hydra_config.sweep.dir), launchers.in_subprocesses(hydra_config)
    if in_subprocess:
        _set_up_subprocess(hydra_config.job.num)
    stop_reason = read_stop_flag(folder)
    if is_distributed():
        from sam_runner.distributed.torchrun import broadcast_from_main

        stop_reason = broadcast_from_main(f"stopped/{hydra_config.job.num}", stop_reason)
    if stop_reason == "failure" and is_main_process():
        error = "an earlier job failed, and sweep.on_error=stop"
        record_failure(folder, overrides, "not run", error, error)
    if stop_reason:
        return None
    if not cfg.dry_run and is_main_process():
        clear_failure(folder, overrides)
    try:
        config = load_experiment(plain_settings(cfg), overrides, multirun=True)
        require_files(config)
        log.info("job %d: %s", hydra_config.job.num + 1, " ".join(overrides))
        _run_or_wait(config, overrides, folder)
        if launchers.is_search(hydra_config):
            return read_objective(folder, overrides, config.fingerprint())
    except RunInterrupt as stop:
        if not in_subprocess:
            raise
        if stop.reason == "SIGUSR2":
            signal.raise_signal(
                signal.SIGUSR2
            )  # submitit's handler is active again and puts the job back into the queue
    except BrokenPipeError:
        raise
    except RankError as error:
        exit_immediately(error)
    except Exception as error:
        message, text = report_exception(error)
        if cfg.dry_run:
            codes.append(1)
            if in_subprocess:
                raise
            return None
        if not is_main_process():
            return None
        state = "refused" if isinstance(error, InputError) else "failed"
        record_failure(folder, overrides, state, message, text)
        if cfg.sweep.on_error == "stop":
            set_stop_flag(folder, "failure")
    return None


def _run_or_wait(config: ExperimentConfig, overrides: list[str], folder: Path) -> None:
    """Train the job's run. If another call of the same sweep trains it, wait for that: the run is finished then."""
    from sam_runner.runs.start import start_run  # imports torch, after the settings are valid

    while True:
        try:
            start_run(config, overrides, folder)
            return
        except FolderInUseError as error:
            if is_distributed():  # the processes would not leave the wait together
                raise
            log.info("%s; waiting until it ends", str(error).splitlines()[0])
            wait_until_free(job_folder(folder, overrides))


def _set_up_subprocess(number: int) -> None:
    """Set up a process of a launcher: number the lines of its log, and leave Ctrl-C to the parent.

    Args:
        number: Number of the job in its sweep, from 0.
    """
    log_to_console(f"[{number + 1}] ")
    os.environ["SAM_RUNNER_JOB"] = str(number)  # chooses one of several GPUs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
