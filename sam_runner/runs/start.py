"""One run, from checked settings to a finished folder."""

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from sam_runner.distributed.torchrun import join_process_group
from sam_runner.runs import folder as run_folder
from sam_runner.runs.dry_run import data_in_words, describe
from sam_runner.runs.logging import NullLogger, Tracker
from sam_runner.training.build import build_run, precision_of
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.loop import fit
from sam_runner.training.state import CheckpointSchedule, Outputs, Progress, Run, restore
from sam_runner.utils.errors import InputError, RunInterrupt, TrainingError
from sam_runner.utils.files import explain_full_disk, write_json
from sam_runner.utils.signals import StopRequest, catch_stop_signals

LENGTH = {"epochs", "max_steps"}  # keys that make a run longer or shorter
log = logging.getLogger("sam_runner")


def launch(settings: Mapping[str, Any], fingerprint: str, overrides: Sequence[str], sweep_folder: Path | None) -> None:
    """Train one run, or say why there is nothing to do.

    Args:
        settings: Plain, resolved, validated.
        fingerprint: Of the settings.
        overrides: What was typed; names the folder of a sweep's cell.
        sweep_folder: The sweep's folder, None for a single run.

    Raises:
        InputError: Where settings or folder cannot be used; nothing has been made then.
        TrainingError: Where the training fails for a known reason, or the disk is full.
    """
    context = join_process_group(
        settings["rank_timeout"], cuda=settings["device"] != "cpu" and torch.cuda.is_available()
    )
    if sweep_folder is not None:
        folder = run_folder.cell_folder(sweep_folder, overrides)
    else:
        folder = Path(os.path.expanduser(settings["run_dir"])) if settings["run_dir"] else run_folder.new_run_folder()
    if settings["dry_run"]:
        plan = context.on_all(lambda: describe(settings, build_run(settings, context), folder, overrides))
        if context.is_main:
            print(plan)
        return
    changes = context.on_main(lambda: _wanted(folder, settings, fingerprint, sweep_folder))
    if changes is None:
        return
    run = context.on_all(lambda: build_run(settings, context))
    _require_same_data(run)
    if LENGTH & changes.keys():
        context.on_main(lambda: _require_as_long(run, folder))
    with ExitStack() as stack:
        stop = stack.enter_context(catch_stop_signals())
        # What concerns the folder is the first rank's; all of them learn whether it went well.
        context.on_main(lambda: _take_over(folder, settings, changes, stack, again=sweep_folder or folder))
        try:
            _train(run, folder, settings, fingerprint, stop)
        except TrainingError:  # a matter of numbers that all ranks have
            raise
        except Exception as error:
            if context.world_size == 1:  # as its own cause the error would keep the run alive, and its data workers
                raise
            raise context.attribute_error(error) from error


def _wanted(
    folder: Path, settings: Mapping[str, Any], fingerprint: str, sweep_folder: Path | None
) -> dict[str, str] | None:
    """Settings of the run in the folder that have changed; None where it, or another of the sweep, has finished."""
    try:
        changes = run_folder.require_usable(folder, settings)
    except OSError as error:
        raise InputError(f"run folder {str(folder)[:200]} cannot be used: {error.strerror}") from error
    longer = LENGTH & changes.keys()
    twin = folder if run_folder.finished_result(folder) and not longer else None
    if twin is None and sweep_folder is not None and not longer:
        twin = run_folder.finished_duplicate(sweep_folder, fingerprint)
    if twin is None:
        return changes
    log.info("already finished: %s  %s", twin, _summary(run_folder.finished_result(twin) or {}))
    return None


def _require_same_data(run: Run) -> None:
    digests = run.context.all_gather(run.data_digest)
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise InputError(f"rank {rank} has other data or labels than rank 0\n  give all machines the same files")


def _require_as_long(run: Run, folder: Path) -> None:
    """Refuse to end a run before the step that it is at; nothing has been changed then."""
    found = CheckpointFolder(folder / "checkpoints").latest()
    done = 0 if found is None else found["step"]
    if done > run.max_steps:
        raise InputError(
            f"the run in {folder} has done {done} steps, and {run.max_steps} are asked for\n"
            f"  give at least max_steps={done} and as many epochs, or another run_dir"
        )


def _take_over(
    folder: Path, settings: Mapping[str, Any], changes: Mapping[str, str], stack: ExitStack, again: Path
) -> None:
    """Make the run's folder this process's own, until `stack` is left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run folder {folder} cannot be made: {error.strerror}") from error
    stack.enter_context(explain_full_disk(folder))
    stack.enter_context(run_folder.locked(folder))
    if not (folder / run_folder.SETTINGS).is_file():  # first of all: it is what makes a folder a run's
        run_folder.write_settings(folder, settings)
    stack.enter_context(_recorded(folder, again))
    for key, change in changes.items():
        log.warning("%s", ": ".join(filter(None, [f"{key} changed, {change}", run_folder.MAY_CHANGE[key]])))


def _train(run: Run, folder: Path, settings: Mapping[str, Any], fingerprint: str, stop: StopRequest) -> None:
    device, options = str(run.step.objective.device), settings["checkpoint"]
    checkpoints = CheckpointFolder(folder / "checkpoints", options["keep"], options["keep_epochs"])
    found = run.context.on_main(checkpoints.latest)
    progress, metrics_bytes = Progress(), 0
    if found is not None:
        progress, metrics_bytes = restore(run, found), found["metrics_bytes"]
        log.info("continuing %s after step %d, in epoch %d", folder, progress.step, progress.epoch + 1)
    else:
        log.info("run folder %s", folder)
    log.info("data: %s", data_in_words(run))
    precision, why = precision_of(settings, run.step.objective.device)
    if why:
        log.info("precision %s: %s%s", precision, why, "" if precision == "fp32" else " (precision=fp32 for float32)")
    tracker: Tracker = NullLogger()

    def begin() -> None:
        nonlocal tracker
        changed = run_folder.changed_environment(folder, device) if found is not None else []
        if changed:
            log.warning("the bits of the numbers may differ from an uninterrupted run: %s", ", ".join(changed))
        run_folder.write_settings(folder, settings)
        run_folder.write_environment(folder, device)
        run_folder.write_status(folder, "running")
        tracker = Tracker(folder, progress.step, metrics_bytes)

    run.context.on_main(begin)
    try:
        fit(
            run,
            Outputs(tracker, checkpoints),
            progress,
            stop,
            CheckpointSchedule(options["every_steps"], options["every_seconds"], options["min_interval"]),
        )
        tracker.hparams(run_folder.flat(settings), progress.final)
    finally:
        tracker.close()
    if not run.context.is_main:
        return
    result = {
        "status": "finished",
        "seed": settings["seed"],
        "epoch": progress.epoch,
        "step": progress.step,
        "skipped_steps": progress.step - progress.updates + progress.nonfinite,
        "final": progress.final,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "selected_by": "validation/accuracy" if "validation" in run.evaluations else "last epoch",
        "images_per_second": progress.images / progress.seconds,
        "fingerprint": fingerprint,
    }
    write_json(folder / "result.json", result)
    log.info("finished: %s  %s", folder, _summary(result))


def _summary(result: Mapping[str, Any]) -> str:
    final = result.get("final", {})
    shown = [f"{tag} {value:.4f}" for tag, value in final.items() if tag.endswith("/accuracy") or tag == "test/nll"]
    return f"{', '.join(shown)}, {result.get('images_per_second', 0):,.0f} images/s"


class _LogFile(logging.FileHandler):
    """A full disk is told once, by the run, and not at each line that does not fit."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging
        """Nothing."""


@contextmanager
def _recorded(folder: Path, again: Path) -> Iterator[None]:
    """Write the log to run.log, and the way the run ended to status.json.

    Args:
        folder: The run folder.
        again: What the same command has to name to continue: the sweep's folder, or the run folder.
    """
    handler = _LogFile(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
        run_folder.write_status(folder, "finished", exit_code=0)
    except RunInterrupt as stopped:
        named = f"run_dir={folder}" if again == folder else f"sweep_name={again.name}"
        log.info("the same command with %s continues", named)
        state = "interrupted" if stopped.code == 130 else "preempted"
        run_folder.write_status(folder, state, exit_code=stopped.code, signal=stopped.reason)
        raise
    except KeyboardInterrupt:
        log.info("interrupted at once; the last checkpoint is intact")
        run_folder.write_status(folder, "interrupted", exit_code=130)
        raise
    except Exception as error:
        handler.emit(log.makeRecord(log.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))
        with contextlib.suppress(OSError):  # it may have been a full disk
            run_folder.write_status(folder, "failed", exit_code=1, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
