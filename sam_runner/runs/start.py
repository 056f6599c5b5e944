"""Start one run, or continue it: from validated settings to a finished run folder."""

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.distributed.torchrun import join_process_group
from sam_runner.runs.dry_run import describe, describe_data
from sam_runner.runs.environment import changed_environment, write_environment
from sam_runner.runs.folder import SETTINGS, job_folder, new_run_folder, require_usable, write_config
from sam_runner.runs.lock import lock_folder
from sam_runner.runs.logging.jsonl import JsonlLogger
from sam_runner.runs.logging.tensorboard import TensorboardLogger
from sam_runner.runs.status import finished_duplicate, finished_result, write_status
from sam_runner.training.build import build_run, resolve_precision
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.loop import fit
from sam_runner.training.metrics_logger import MetricsLoggers
from sam_runner.training.state import CheckpointSchedule, Outputs, Progress, Run, restore
from sam_runner.utils.errors import InputError, RunInterrupt, TrainingError
from sam_runner.utils.files import explain_full_disk, write_json
from sam_runner.utils.signals import StopRequest, catch_stop_signals

log = logging.getLogger("sam_runner")


def start_run(config: ExperimentConfig, overrides: Sequence[str] = (), sweep_folder: Path | None = None) -> Path | None:
    """Train one run, or log that it has finished already.

    Args:
        config: The settings.
        overrides: What the user typed; it names the folder of a sweep's job.
        sweep_folder: The sweep's folder, None for a single run.

    Returns:
        The folder of the run, also of one that had finished before; None for a dry run.

    Raises:
        InputError: Where settings or folder cannot be used; nothing has been written then.
        TrainingError: Where a number is not finite, or the disk is full.
    """
    config = config.with_absolute_paths()
    context = join_process_group(config.rank_timeout, cuda=config.device != "cpu" and torch.cuda.is_available())
    if sweep_folder is not None:
        folder = job_folder(sweep_folder, overrides)
    else:
        folder = Path(os.path.expanduser(config.run_dir)) if config.run_dir else new_run_folder()
    if config.dry_run:
        plan = context.on_all(lambda: describe(config, build_run(config, context), folder, overrides))
        if context.is_main:
            print(plan)
        return None
    found = context.on_main(lambda: _find_finished(folder, config, sweep_folder))
    if isinstance(found, Path):
        return found
    changes = found
    run = context.on_all(lambda: build_run(config, context))
    _require_same_data(run)
    if any(facts.sets_length and name in changes for name, facts, _ in walk(config)):
        context.on_main(lambda: _require_long_enough(run, folder))
    with ExitStack() as stack:
        stop = stack.enter_context(catch_stop_signals())
        # The main process prepares the folder; all processes learn whether that succeeded.
        context.on_main(lambda: _prepare_folder(folder, config, changes, stack, sweep_folder))
        try:
            _train(run, folder, config, stop)
        except TrainingError:  # every process has the same numbers and raises it too
            raise
        except Exception as error:
            if context.world_size == 1:  # chaining the error to itself would keep the run and its data workers alive
                raise
            raise context.attribute_error(error) from error
    return folder


def _find_finished(folder: Path, config: ExperimentConfig, sweep_folder: Path | None) -> Path | dict[str, str]:
    """Return the folder of the finished run, in a sweep also of an equal one; else the settings that have changed."""
    try:
        changes = require_usable(folder, config)
    except OSError as error:
        raise InputError(f"run folder {str(folder)[:200]} cannot be used: {error.strerror}") from error
    longer = any(facts.sets_length and name in changes for name, facts, _ in walk(config))
    finished = folder if finished_result(folder) and not longer else None
    if finished is None and sweep_folder is not None and not longer:
        finished = finished_duplicate(sweep_folder, config.fingerprint())
    if finished is None:
        return changes
    log.info("already finished: %s  %s", finished, _summary(finished_result(finished) or {}))
    return finished


def _require_same_data(run: Run) -> None:
    """Refuse processes that have read different data."""
    for rank, digest in enumerate(digests := run.context.all_gather(run.data_digest)):
        if digest != digests[0]:
            raise InputError(f"rank {rank} has other data or labels than rank 0\n  give all machines the same files")


def _require_long_enough(run: Run, folder: Path) -> None:
    """Refuse to end a run before the step of its latest checkpoint."""
    found = CheckpointFolder(folder / "checkpoints").latest()
    done = 0 if found is None else found["step"]
    if done > run.max_steps:
        raise InputError(
            f"the run in {folder} has done {done} steps, and {run.max_steps} are asked for\n"
            f"  give at least max_steps={done} and as many epochs, or another run_dir"
        )


def _prepare_folder(
    folder: Path, config: ExperimentConfig, changes: Mapping[str, str], stack: ExitStack, sweep_folder: Path | None
) -> None:
    """Make and lock the run folder until `stack` is closed, and log the settings that have changed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run folder {folder} cannot be made: {error.strerror}") from error
    stack.enter_context(explain_full_disk(folder))
    stack.enter_context(lock_folder(folder))
    if not (folder / SETTINGS).is_file():  # written before all other files: it marks the folder as a run's
        write_config(folder, config)
    stack.enter_context(_record_end(folder, sweep_folder))
    facts = {name: entry for name, entry, _ in walk(config)}
    for name, change in changes.items():
        log.warning("%s", ": ".join(filter(None, [f"{name} changed, {change}", facts[name].on_resume])))


def _train(run: Run, folder: Path, config: ExperimentConfig, stop: StopRequest) -> None:
    """Train a run in its folder, which the process holds the lock of."""
    device, options = str(run.step.objective.device), config.checkpoint
    checkpoints = CheckpointFolder(folder / "checkpoints", options.keep, options.keep_epochs)
    found = run.context.on_main(checkpoints.latest)
    progress = Progress() if found is None else restore(run, found)
    if found is None:
        log.info("run folder %s", folder)
    else:
        log.info("continuing %s after step %d, in epoch %d", folder, progress.step, progress.epoch + 1)
    log.info("data: %s", describe_data(run))
    precision, reason = resolve_precision(config.precision, run.step.objective.device)
    if reason:
        hint = "" if precision == "fp32" else " (precision=fp32 for float32)"
        log.info("precision %s: %s%s", precision, reason, hint)
    loggers = MetricsLoggers()

    def begin() -> None:
        """Write what describes the run, and open its logs."""
        nonlocal loggers
        changed = changed_environment(folder, device) if found is not None else []
        if changed:
            log.warning("the bits of the numbers may differ from an uninterrupted run: %s", ", ".join(changed))
        write_config(folder, config)
        write_environment(folder, device)
        write_status(folder, "running")
        num_bytes = 0 if found is None else found["loggers"]["jsonl"]
        loggers = MetricsLoggers([JsonlLogger(folder, num_bytes), TensorboardLogger(folder, progress.step)])

    run.context.on_main(begin)
    schedule = CheckpointSchedule(options.every_steps, options.every_seconds, options.min_interval)
    try:
        fit(run, Outputs(loggers, checkpoints), progress, stop, schedule)
        loggers.hparams(config.flat(), progress.final)
    finally:
        loggers.close()
    if not run.context.is_main:
        return
    result = {
        "status": "finished",
        "seed": config.seed,
        "epoch": progress.epoch,
        "step": progress.step,
        "skipped_steps": progress.step - progress.updates + progress.nonfinite,
        "final": progress.final,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "selected_by": "validation/accuracy" if "validation" in run.evaluations else "last epoch",
        "images_per_second": progress.images / progress.seconds,
        "fingerprint": config.fingerprint(),
    }
    write_json(folder / "result.json", result)
    log.info("finished: %s  %s", folder, _summary(result))


def _summary(result: Mapping[str, Any]) -> str:
    """Return accuracies, test likelihood and speed of a finished run in one line."""
    final = result.get("final", {})
    metrics = [f"{tag} {value:.4f}" for tag, value in final.items() if tag.endswith("/accuracy") or tag == "test/nll"]
    return f"{', '.join(metrics)}, {result.get('images_per_second', 0):,.0f} images/s"


class _LogFile(logging.FileHandler):
    """A log file that does not report its own errors: the run reports a full disk once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging
        """Ignore the error."""


@contextmanager
def _record_end(folder: Path, sweep_folder: Path | None) -> Iterator[None]:
    """Write the log to run.log, and at the end of the body how the run ended to status.json.

    Args:
        folder: The run folder.
        sweep_folder: The sweep's folder; the user continues a sweep by its name, and a single run by its folder.
    """
    handler = _LogFile(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
        write_status(folder, "finished", exit_code=0)
    except RunInterrupt as stopped:
        name = f"run_dir={folder}" if sweep_folder is None else f"sweep_name={sweep_folder.name}"
        log.info("the same command with %s continues", name)
        state = "interrupted" if stopped.code == 130 else "preempted"
        write_status(folder, state, exit_code=stopped.code, signal=stopped.reason)
        raise
    except KeyboardInterrupt:
        log.info("interrupted at once; the last checkpoint is intact")
        write_status(folder, "interrupted", exit_code=130)
        raise
    except Exception as error:
        handler.emit(log.makeRecord(log.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))
        with contextlib.suppress(OSError):  # the disk may be full
            write_status(folder, "failed", exit_code=1, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
