"""Start or continue one run: from validated settings to a finished run folder."""

import contextlib
import logging
import math
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sam_runner.config.data import ImageFolderConfig, ImageListConfig
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.data.files.jpeg import describe_decoders
from sam_runner.data.normalisation import read_normalisation
from sam_runner.distributed.context import DistributedContext
from sam_runner.distributed.torchrun import join_process_group
from sam_runner.models.build import require_new_weights
from sam_runner.models.pretrained import find_head
from sam_runner.runs.description import chosen_settings, describe_facts, swept_settings
from sam_runner.runs.dry_run import Plan, describe_data, describe_method, plan_run
from sam_runner.runs.environment import compare_environment, read_command, resume_command, write_environment
from sam_runner.runs.folder import new_run_folder, require_usable, write_config
from sam_runner.runs.load import explain_misfit
from sam_runner.runs.lock import lock_folder
from sam_runner.runs.logging.choice import open_loggers
from sam_runner.runs.model_facts import write_model_facts
from sam_runner.runs.plan import agree_on_precision
from sam_runner.runs.remarks import list_remarks
from sam_runner.runs.result import RESULT, read_finished_result, summarise_result, write_result
from sam_runner.runs.status import read_status, write_status
from sam_runner.sam.network.joint_passes import JointPasses
from sam_runner.training.builders.run import build_run, resolve_device, resolve_precision
from sam_runner.training.checkpoints import CheckpointFolder, CheckpointSchedule
from sam_runner.training.loop import fit
from sam_runner.training.metrics_logger import MetricsLoggers
from sam_runner.training.state import Outputs, Progress, Run, restore_state
from sam_runner.utils.console import DETAIL
from sam_runner.utils.errors import INTERRUPTED, InputError, RunInterrupt, TrainingError
from sam_runner.utils.files import SETTINGS_FILE, explain_write_errors
from sam_runner.utils.signals import StopRequest, catch_stop_signals, raise_for_signal

log = logging.getLogger("sam_runner")


def start_run(
    config: ExperimentConfig,
    overrides: Sequence[str] = (),
    job_folder: Path | None = None,
    joint: JointPasses | None = None,
) -> Path | None:
    """Train a run, continue it, or log that it has already finished.

    Args:
        config: The settings.
        overrides: Settings as the user typed them.
        job_folder: Run folder of a job, in the folder of its sweep; None for a single run.
        joint: Makes one pass for this run and those in other threads; None: the run makes its own passes.

    Returns:
        The folder of the finished run; None for a dry run.

    Raises:
        InputError: If the settings or the folder cannot be used. Nothing has been written then.
        TrainingError: If a loss or gradient is not finite, or the disk is full.
        RunInterrupt: If a signal stopped the run after it had saved, or a signal for its sweep came after a job's last
            step, and the job has finished.
    """
    config, context = config.with_absolute_paths(), _join(config)
    folder = job_folder or (Path(os.path.expanduser(config.run_dir)) if config.run_dir else new_run_folder())
    if config.dry_run:
        context.on_main(lambda: require_usable(folder, config))
        plan = make_plan(config, overrides, folder)
        if context.is_main:
            print("\n".join([str(plan), *_describe_done(folder)]))
        return None
    finished, changes = context.on_main(lambda: _find_finished(folder, config))
    if finished:
        return folder
    normalisation = context.on_main(lambda: read_normalisation(folder))
    chosen = context.on_all(lambda: _choose_precision(config, context))
    precision, reason = context.on_main(lambda: _agree_on_precision(config, *chosen, job_folder))
    resolved = replace(config, precision=precision)  # type: ignore[arg-type]
    run = context.on_all(lambda: build_run(resolved, context, normalisation, joint=joint))
    require_new_weights(run.model, config.model.target)
    _require_same_data(run)
    if any(facts.sets_length and name in changes for name, facts, _ in walk(config)):
        context.on_main(lambda: _require_long_enough(run, folder, config))
    with ExitStack() as stack:
        stop = stack.enter_context(catch_stop_signals())
        # The main process prepares the folder; an error there is raised in all processes.
        context.on_main(lambda: _prepare_folder(folder, config, changes, stack, is_job=job_folder is not None))
        try:
            _train(run, folder, config, stop, overrides, precision, reason, is_job=job_folder is not None)
        except TrainingError:  # every process has the same metrics and raises the same error
            raise
        except Exception as error:
            # attribute_error returns the same error for one process, and `raise error from error` would make a
            # reference cycle that keeps the run and its workers in memory.
            if context.world_size == 1:
                raise
            raise context.attribute_error(error) from error
    if job_folder is not None:
        raise_for_signal(*context.all_reduce_max(stop.signal_number))
    return folder


def _describe_done(folder: Path) -> list[str]:
    """Return a line of the plan for the steps that the run in a folder has already made."""
    names = CheckpointFolder(folder / "checkpoints").list_names("last")
    steps = int(names[0].partition("-")[2]) if names else 0
    return [f"  done       {steps:,} steps; steps, compute and time are those of the whole run"] if steps else []


def make_plan(config: ExperimentConfig, overrides: Sequence[str], folder: Path) -> Plan:
    """Return the plan of a run, see `plan_run`. All processes that would train the run call this together."""
    context = _join(config)
    return context.on_all(lambda: plan_run(config.with_absolute_paths(), folder, overrides, context))


def _join(config: ExperimentConfig) -> DistributedContext:
    return join_process_group(config.rank_timeout, cuda=config.device != "cpu" and torch.cuda.is_available())


def _find_finished(folder: Path, config: ExperimentConfig) -> tuple[bool, dict[str, str]]:
    """Return whether the run in `folder` has finished, and the settings that differ from those in `folder`."""
    try:
        changes = require_usable(folder, config)
    except OSError as error:
        raise InputError(
            f"run folder {str(folder)[:200]} cannot be used: {error.strerror}\n"
            "  give another folder: run_dir=FOLDER; for a sweep sweep_name=NAME"
        ) from error
    length_changed = any(facts.sets_length and name in changes for name, facts, _ in walk(config))
    result = None if length_changed else read_finished_result(folder)
    if result is not None:
        log.info("already finished: %s  %s", folder, summarise_result(result))
        _store_moved_paths(folder, config, changes)
    return result is not None, changes


def _store_moved_paths(folder: Path, config: ExperimentConfig, changes: Mapping[str, str]) -> None:
    """Store where a finished run finds its data and labels now, for the commands that read the run."""
    moved = [name for name, facts, _ in walk(config) if facts.path and name in changes]
    if not moved:
        return
    with explain_write_errors(folder, lambda: "repeat the command"), lock_folder(folder):
        write_config(folder, config)
    for name in moved:
        log.info("%s changed, %s", name, changes[name])


def _choose_precision(config: ExperimentConfig, context: DistributedContext) -> tuple[str, str, str]:
    """Return the precision of the passes, why ``precision=auto`` chose it, and the type of the device."""
    device = resolve_device(config.device, context)
    return *resolve_precision(config.precision, device), device.type


def _agree_on_precision(
    config: ExperimentConfig, precision: str, reason: str, device_type: str, job_folder: Path | None
) -> tuple[str, str]:
    """Return the precision and the reason. With ``precision=auto`` a job uses that of the sweep's first job."""
    if config.precision != "auto" or job_folder is None:
        return precision, reason
    agreed = agree_on_precision(job_folder.parent, device_type, precision)
    return agreed, reason if agreed == precision else "chosen by the first job of the sweep"


def _require_same_data(run: Run) -> None:
    """Require that all processes have read the same data."""
    for rank, digest in enumerate(digests := run.context.all_gather(run.data_digest)):
        if digest != digests[0]:
            raise InputError(
                f"rank {rank} has other data or labels than rank 0\n"
                "  give all machines the same files; your own function has to return the same data in every process"
            )


def _require_long_enough(run: Run, folder: Path, config: ExperimentConfig) -> None:
    """Require that a run does not end before its latest checkpoint."""
    state = CheckpointFolder(folder / "checkpoints").load_latest()
    done = 0 if state is None else state["step"]
    if done > run.max_steps:
        epochs = math.ceil(done / len(run.train))
        settings = [f"epochs={epochs}"] if config.epochs < epochs else []
        settings += [f"max_steps={done}"] if config.max_steps is not None and config.max_steps < done else []
        raise InputError(
            f"the run in {folder} has done {done} steps, and {run.max_steps} are asked for\n"
            f"  give {' '.join(settings)} or more; for a new run: another run_dir, or config=RUN"
        )


def _prepare_folder(
    folder: Path, config: ExperimentConfig, changes: Mapping[str, str], stack: ExitStack, *, is_job: bool
) -> None:
    """Create the run folder, lock it until `stack` closes, and log the settings that have changed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"run folder {folder} cannot be created: {error.strerror}\n"
            "  give another folder: run_dir=FOLDER; for a sweep sweep_name=NAME"
        ) from error
    stack.enter_context(
        explain_write_errors(folder, lambda: _describe_continuation(folder, config, repeat=is_job or bool(changes)))
    )
    stack.enter_context(lock_folder(folder))
    if not (folder / SETTINGS_FILE).is_file():  # the first of all files, because it marks a run folder
        write_config(folder, config)
    stack.enter_context(_record_end(folder, config, is_job=is_job))
    facts = {name: entry for name, entry, _ in walk(config)}
    for name, change in changes.items():
        log.warning("%s", ": ".join(filter(None, [f"{name} changed, {change}", facts[name].on_resume])))


def _train(
    run: Run,
    folder: Path,
    config: ExperimentConfig,
    stop: StopRequest,
    overrides: Sequence[str],
    precision: str,
    reason: str,
    *,
    is_job: bool,
) -> None:
    """Train a run in its folder, which the main process has locked."""
    device, options = str(run.step.objective.device), config.checkpoint
    checkpoints = CheckpointFolder(folder / "checkpoints", options.keep, options.keep_epochs, options.every_epochs)
    state = run.context.on_main(checkpoints.load_latest)
    with explain_misfit(f"the checkpoint does not fit {folder}/config.yaml or your code"):
        progress = Progress() if state is None else restore_state(run, state)
    logger_states = {} if state is None else state["loggers"]
    if progress.before_end and run.max_steps > progress.step:  # the run was made longer
        logger_states = progress.return_to_before_end() or logger_states
    if state is None:
        hint = "" if is_job else f"  (to continue it: {resume_command(folder, config)})"
        log.info("run folder %s%s", folder, hint, extra=DETAIL)
    else:
        log.info("continuing %s after step %d, in epoch %d", folder, progress.step, progress.epoch + 1)
    _log_settings(run, config, overrides, precision, reason)
    decoders = describe_decoders() if isinstance(config.data, ImageFolderConfig | ImageListConfig) else None
    loggers = MetricsLoggers()

    def open_folder() -> None:
        """Write the files that describe the run, and open its logs."""
        nonlocal loggers
        changed = compare_environment(folder, device, precision, decoders) if state is not None else []
        if changed:
            log.warning(
                "the last digits of the numbers may differ from those of an uninterrupted run: %s", ", ".join(changed)
            )
        # A finished run that is made longer has a result. If it stayed, the run would count as finished after an
        # interruption.
        (folder / RESULT).unlink(missing_ok=True)
        write_config(folder, config)
        write_environment(folder, device, precision, decoders)
        write_model_facts(folder, run)
        write_status(folder, "running", from_epoch=progress.epoch)
        loggers = open_loggers(config.logger, folder, progress.step, logger_states)
        if state is None:
            loggers.text("run", describe_facts(run, config, folder, overrides))

    run.context.on_main(open_folder)
    schedule = CheckpointSchedule(options.every_steps, options.every_seconds, options.min_interval)
    try:
        fit(run, Outputs(loggers, checkpoints), progress, stop, schedule)
        loggers.hparams(chosen_settings(config, overrides), run.final_metrics(progress), swept_settings(read_command()))
    finally:
        loggers.close()
    if not run.context.is_main:
        return
    result = write_result(folder, config, run, progress)
    log.info("finished: %s  %s", folder, summarise_result(result))


def _log_settings(run: Run, config: ExperimentConfig, overrides: Sequence[str], precision: str, reason: str) -> None:
    """Log data, precision and learning rates of a run, and remarks on its settings."""
    log.info("data: %s", describe_data(run), extra=DETAIL)
    for remark in list_remarks(run, config, overrides):
        log.warning("%s", remark)
    if reason:
        hint = "" if precision == "fp32" else " (precision=fp32 for float32)"
        log.info("precision %s: %s%s", precision, reason, hint, extra=DETAIL)
    if config.head_lr is not None:
        head = find_head(run.model, len(run.classes))
        log.info("head %s: learning rate %g, other layers %g", head, config.head_lr, config.lr, extra=DETAIL)
    if describe_method(config):
        log.info("sharpness: loss at w + eps minus loss at w, on the training batches", extra=DETAIL)


def _describe_continuation(folder: Path, config: ExperimentConfig, *, repeat: bool) -> str:
    """Return what continues a run when a fault of its folder is mended; without config.yaml the folder has no run.

    Args:
        folder: The run folder.
        config: The settings of the run.
        repeat: Whether the same command continues: that of a sweep does, and one that names the folder to change a run.
    """
    if repeat or not (folder / SETTINGS_FILE).is_file():
        return "repeat the command"
    return f"continue the run: {resume_command(folder, config)}"


class _LogFile(logging.FileHandler):
    """A log file that ignores its own errors, because the run reports a full disk itself, and once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging
        """Ignore the error."""


@contextmanager
def _record_end(folder: Path, config: ExperimentConfig, *, is_job: bool) -> Iterator[None]:
    """Write log messages to run.log while the context is open, and the exit status to status.json when it closes.

    Args:
        folder: The run folder.
        config: The settings.
        is_job: Whether the run is a job of a sweep.
    """
    began = time.monotonic()
    handler = _LogFile(folder / "run.log", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if threading.current_thread() is not threading.main_thread():  # runs in other threads have logs of their own
        own = threading.get_ident()
        handler.addFilter(lambda record: record.thread == own)
    log.addHandler(handler)
    try:
        yield
        from_epoch = read_status(folder).get("from_epoch", 0)
        write_status(folder, "finished", exit_code=0, from_epoch=from_epoch, seconds=time.monotonic() - began)
    except RunInterrupt as stopped:
        if is_job:
            log.info("the same command with sweep_name=%s continues the run", folder.parent.name)
        else:
            log.info("to continue the run: %s", resume_command(folder, config))
        state = "interrupted" if stopped.code == INTERRUPTED else "preempted"
        write_status(folder, state, exit_code=stopped.code, signal=stopped.reason)
        raise
    except KeyboardInterrupt:
        message = "interrupted immediately; the last checkpoint is intact"
        handler.emit(log.makeRecord(log.name, logging.INFO, "", 0, message, (), None))
        write_status(folder, "interrupted", exit_code=INTERRUPTED)
        raise KeyboardInterrupt(message) from None
    except Exception as error:
        handler.emit(log.makeRecord(log.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))
        with contextlib.suppress(OSError):  # the disk may be full
            write_status(folder, "failed", exit_code=1, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
