"""One cell of a sweep, in whatever process it runs. Imports no torch before the settings are valid."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra import launchers
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.config.rules import require_files
from sam_runner.sweeps import status as sweep_status
from sam_runner.utils.console import exit_immediately, is_distributed, is_main_process, log_to_console, report_exception
from sam_runner.utils.errors import InputError, RankError, RunInterrupt


def run_cell(cfg: Any, hydra_config: Any, overrides: list[str], codes: list[int]) -> float | None:
    """A cell of a sweep, perhaps in a process of its own; an error is noted on the disk, and the sweep goes on.

    Args:
        cfg: Its configuration.
        hydra_config: Hydra's own settings.
        overrides: What was typed for it.
        codes: Takes the exit code of a cell that failed in a dry run, which leaves nothing on the disk.

    Returns:
        What a search maximises.
    """
    folder, beside_others = Path(hydra_config.sweep.dir), launchers.in_subprocesses(hydra_config)
    if beside_others:
        _beside_others(hydra_config.job.num)
    stopped = sweep_status.stopped(folder)
    if is_distributed():
        from sam_runner.distributed.torchrun import broadcast_from_main

        stopped = broadcast_from_main(f"stopped/{hydra_config.job.num}", stopped)
    if stopped == "failure" and is_main_process():
        reason = "a cell failed before it, and sweep_status.on_error=stop"
        sweep_status.record_failure(folder, overrides, "not run", reason, reason)
    if stopped:
        return None
    if not cfg.dry_run and is_main_process():
        sweep_status.clear_failure(folder, overrides)
    try:
        config = load_experiment(plain_settings(cfg), overrides, multirun=True)
        require_files(config)
        logging.getLogger("sam_runner").info("cell %d: %s", hydra_config.job.num + 1, " ".join(overrides))
        from sam_runner.runs.start import start_run  # imports torch, after the settings are valid

        start_run(config, overrides, folder)
        return (
            sweep_status.objective(folder, overrides, config.fingerprint())
            if launchers.is_search(hydra_config)
            else None
        )
    except RunInterrupt as stop:
        if not beside_others:
            raise
        if stop.reason == "SIGUSR2":
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler, in force again, puts the cell into the queue
    except BrokenPipeError:
        raise
    except RankError as error:
        exit_immediately(error)
    except Exception as error:
        message, text = report_exception(error)
        if cfg.dry_run:
            codes.append(1)
            if beside_others:
                raise
            return None
        if not is_main_process():
            return None
        sweep_status.record_failure(
            folder, overrides, "refused" if isinstance(error, InputError) else "failed", message, text
        )
        if cfg.sweep.on_error == "stop":
            sweep_status.stop(folder, "failure")
    return None


def _beside_others(number: int) -> None:
    """In a process of a sweep's engine: lines name their cell, and a Ctrl-C is for the parent."""
    log_to_console(f"[{number + 1}] ")
    os.environ["SAM_RUNNER_CELL"] = str(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
