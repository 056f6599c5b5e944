"""The training loop: epochs of steps, with evaluation, logging and checkpoints.

It gets all it needs as a `Run` and reads no settings. The mathematics of a step is in `sam`.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from sam_runner.data.loader import ImageBatch
from sam_runner.distributed.sharding import is_sharded
from sam_runner.sam.batch import Batch
from sam_runner.sam.step import CHECKED, SamStep, StepStats
from sam_runner.training.checkpoints import CheckpointSchedule
from sam_runner.training.evaluation import Metrics, add_prefix, evaluate, evaluation_weights
from sam_runner.training.metrics import SUMS, TrainMeter, count_pairs, is_better, train_metrics
from sam_runner.training.pictures import count_classes_per_square, draw_confusion_matrix, draw_image_grid
from sam_runner.training.state import Outputs, Progress, Run, UnsavedAttributes, save_checkpoint
from sam_runner.training.telemetry import measure_step
from sam_runner.utils.console import DETAIL
from sam_runner.utils.errors import RunInterrupt, TrainingError
from sam_runner.utils.memory import reset_peak_memory
from sam_runner.utils.signals import StopRequest, raise_for_signal

log = logging.getLogger(__name__)
DIVERGED = 100  # a run has diverged if its loss is more than this many times the loss of equal probabilities


def fit(
    run: Run,
    outputs: Outputs,
    progress: Progress,
    stop: StopRequest,
    save_schedule: CheckpointSchedule | None = None,
) -> Progress:
    """Train a run from `progress` to its end.

    Args:
        run: The run. It must not have fewer epochs or steps than `progress` has completed.
        outputs: Loggers and checkpoints.
        progress: Progress to start from; it is updated in place.
        stop: Stop request of this rank, read after every step and every evaluated batch. A request on one rank stops
            all ranks.
        save_schedule: When to write checkpoints; None: at the end of every epoch.

    Returns:
        `progress`.

    Raises:
        TrainingError: If a loss, a gradient or a metric is not finite, or every step of an epoch was skipped. With
            ``run.skip_nonfinite`` a step with such a loss or gradient is skipped instead.
        RunInterrupt: If a rank received a stop request. A checkpoint of the last step then exists.
    """
    save_schedule = save_schedule or CheckpointSchedule()
    reset_peak_memory(run.step.objective.device)
    saved_step, unsaved = progress.step, UnsavedAttributes(run.step)
    if progress.step == 0:
        first = next(run.train.epoch(0))
        if run.train.is_image:
            outputs.loggers.image("train/images", draw_image_grid(run.train.denormalise(first.images[:32])), 0)
        if bool((run.train.labels != run.train.clean_labels).any()):
            outputs.loggers.image("train/label_transition", _draw_label_transition(run), 0)
    try:
        while progress.epoch < run.epochs and (progress.batch or not _is_over(run, progress)):
            _train_epoch(run, outputs, progress, stop, save_schedule)
            unsaved.warn()
            if _end_epoch(run, outputs, progress, stop, save_schedule):
                saved_step = progress.step
                save_schedule.restart()
        if progress.batch == 0 and progress.evaluated_epoch < progress.epoch:  # resumed with fewer `epochs`
            _require_finite(values := evaluate(run, None, stop), f"after epoch {progress.epoch}")
            is_best = _record_evaluation(progress, values, run.selected_by)
            save_checkpoint(run, outputs, progress, is_best=is_best, at_epoch_end=True)
    except RunInterrupt as stopped:
        if progress.step > saved_step:  # otherwise the checkpoint of this step exists
            save_checkpoint(run, outputs, progress, at_epoch_end=progress.batch == 0)
        log.info("%s: stopped after step %d and saved a checkpoint", stopped.reason, progress.step)
        raise
    if run.stops_early(progress):
        log.info(
            "early_stopping.patience=%d: ended after epoch %d, %s was best after epoch %d",
            run.patience, progress.epoch, run.selected_by, progress.best_epoch,
        )  # fmt: skip
    return progress


def _is_over(run: Run, progress: Progress) -> bool:
    """Return whether training ends before all `epochs` are done."""
    return progress.step >= run.max_steps or run.stops_early(progress)


def _draw_label_transition(run: Run) -> Tensor:
    """Draw the number of training examples by clean label and training label."""
    num_classes = len(run.classes)
    merged = count_classes_per_square(num_classes)
    counts = count_pairs(run.train.clean_labels, run.train.labels, num_classes, merged)
    return draw_confusion_matrix(counts, run.classes, "clean (rows), given (columns)")


def _train_epoch(
    run: Run, outputs: Outputs, progress: Progress, stop: StopRequest, save_schedule: CheckpointSchedule
) -> None:
    """Train the remaining batches of an epoch and add up their metrics in ``progress.epoch_sums``."""
    meter = TrainMeter(run.step.objective.device, progress.window_sums, run.context)
    num_batches = min(len(run.train), run.max_steps - (progress.step - progress.batch))
    if progress.batch == num_batches:  # resumed after a stop in the evaluation, or with a smaller `max_steps`
        _log_last_row(run, outputs, progress, meter)
    elif progress.window_sums.get("num_steps") and progress.step % run.log_every == 0:
        # An earlier `max_steps` ended the run here, so the steps since the last row have no row yet.
        _log_row(run, outputs, progress, meter, last=False)
    run.model.train()
    stopwatch, seconds_before, num_images_before = _Stopwatch(progress), progress.training_seconds, progress.num_images
    batches = run.train.epoch(progress.epoch, start=progress.batch)
    title = f"epoch {progress.epoch + 1}/{run.epochs}"
    is_alone = threading.current_thread() is threading.main_thread()
    hide_bar = None if run.context.is_main and is_alone else True  # None: show the progress bar on a terminal
    for _ in tqdm(
        range(progress.batch, num_batches), title, num_batches, False, initial=progress.batch, disable=hide_bar
    ):
        measured = _train_step(run, meter, next(batches), progress)
        if measured:
            # Logged before the row of this step, because a resumed run drops what was logged after its last row.
            outputs.loggers.scalars(progress.step, progress.epoch + 1, measured)
        last = progress.batch == num_batches
        if last:
            stopwatch.lap()
            _log_last_row(run, outputs, progress, meter)
        elif progress.step % run.log_every == 0:
            _log_row(run, outputs, progress, meter, last=False)
        signal, due = run.context.all_reduce_max(
            stop.signal_number, not last and save_schedule.should_save(progress.step)
        )
        if signal or due:
            progress.window_sums = meter.read()
            stopwatch.lap()
            raise_for_signal(signal)
            save_checkpoint(run, outputs, progress)
            save_schedule.restart()
            stopwatch.restart()
    stopwatch.lap()
    seconds = progress.training_seconds - seconds_before
    num_images = progress.num_images - num_images_before
    if num_images:
        outputs.loggers.timing(progress.step, {"time/images_per_second": num_images / seconds})


class _Stopwatch:
    """Adds the seconds of training to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._start = time.perf_counter()

    def lap(self) -> None:
        """Add the seconds since the start or the last lap."""
        now = time.perf_counter()
        self._progress.training_seconds += now - self._start
        self._start = now


def _log_last_row(run: Run, outputs: Outputs, progress: Progress, meter: TrainMeter) -> None:
    """Add the sums of an epoch's last steps to the sums of the epoch, which `_end_epoch` logs.

    If `max_steps` ends the run within the epoch, first remember the progress: a longer run continues from it.
    """
    is_incomplete = progress.batch < len(run.train)
    if is_incomplete and progress.before_end.get("progress", {}).get("step") != progress.step:
        progress.remember_before_end(meter.read(), outputs.loggers.flush())
    _log_row(run, outputs, progress, meter, last=True)


def _end_epoch(
    run: Run, outputs: Outputs, progress: Progress, stop: StopRequest, save_schedule: CheckpointSchedule
) -> bool:
    """End an epoch: evaluate if due, log, and save if due. Return whether a checkpoint was written."""
    if not progress.epoch_sums.get("num_steps"):
        raise TrainingError(
            f"every step of epoch {progress.epoch + 1} was skipped, because a loss or gradient was not finite\n"
            "  use precision=bf16 or fp32, or a smaller lr or rho"
        )
    last = progress.epoch + 1 == run.epochs or progress.step >= run.max_steps
    pictures: list[Tensor] = []
    values: Metrics = add_prefix("train", train_metrics(progress.epoch_sums))
    loss_before = progress.last_metrics.get("train/loss", 0.0)
    values |= progress.last_hparams
    may_end = last or (run.patience is not None and progress.evaluations_since_best + 1 >= run.patience)
    must_evaluate = last or (progress.epoch + 1) % run.eval_every == 0
    if must_evaluate:
        values |= evaluate(run, pictures.append if may_end else None, stop)
    else:
        weights = [param.detach().sum() for param in run.model.parameters() if not is_sharded(param)]
        values["weights"] = float(torch.stack(weights).sum()) if weights else 0.0
    _require_finite(values, f"after epoch {progress.epoch + 1}")  # before the weights are saved
    values.pop("weights", None)
    if run.telemetry.measures_epoch(progress.epoch + 1) and run.context.is_main:
        with evaluation_weights(run.step.optimizer):
            values |= run.telemetry.lambda_max(run.model)
    progress.epoch, progress.batch = progress.epoch + 1, 0
    progress.epoch_sums = {}
    outputs.loggers.scalars(progress.step, progress.epoch, values)
    is_best = must_evaluate and _record_evaluation(progress, values, run.selected_by)
    log.info("%s", _format_epoch(run, progress, values), extra=DETAIL)
    _warn_of_divergence(run, values["train/loss"], loss_before, last=last)
    last = last or run.stops_early(progress)
    for picture in pictures if last else ():
        outputs.loggers.image("test/confusion", picture, progress.step)
    must_save = last or (is_best and run.selected_by is not None) or outputs.checkpoints.keeps_epoch(progress.epoch)
    if must_save or run.context.all_reduce_max(save_schedule.should_save_at_epoch_end())[0]:
        save_checkpoint(run, outputs, progress, is_best=is_best, at_epoch_end=True)
        return True
    return False


def _train_step(run: Run, meter: TrainMeter, examples: ImageBatch, progress: Progress) -> Metrics:
    """Take one training step and update `progress`; return what `run.telemetry` measures in it."""
    lr_factor, rho = run.lr(progress.num_updates), run.rho(progress.num_updates)
    groups, scaler = run.step.optimizer.param_groups, run.step.objective.scaler
    for group in groups:
        group["lr"] = group["initial_lr"] * lr_factor
    progress.last_hparams = {"lr": groups[0]["lr"], "rho": rho}
    if scaler.is_enabled():
        progress.last_hparams["loss_scale"] = scaler.get_scale()
    weight = run.context.batch_weight(len(examples.labels), examples.global_batch_size)
    batch = Batch(examples.images, examples.targets, weight)
    measured: Metrics = {}
    if run.telemetry.measures_step(progress.step + 1, progress.measured_step) and isinstance(run.step, SamStep):
        stats, measured = measure_step(run.step, batch, rho, progress.step)
        progress.measured_step = progress.step + 1 if measured else progress.measured_step
    else:
        stats = run.step(batch, rho, progress.step)
    if not run.skip_nonfinite and not scaler.is_enabled() and stats.finite.device.type == "cpu":
        _require_finite_step(stats, progress.step + 1)  # on other devices `_log_row` checks, which synchronises anyway
    progress.step += 1
    progress.batch += 1
    progress.num_images += examples.global_batch_size
    progress.gradient_evaluations += stats.passes.gradient
    progress.images_forward += stats.passes.forward * examples.global_batch_size
    progress.images_backward += stats.passes.backward * examples.global_batch_size
    if not stats.skipped:
        meter.add(stats, examples.labels, examples.clean_labels, len(examples.labels) / examples.global_batch_size)
        progress.num_updates += 1
        if run.ema is not None and (not run.skip_nonfinite or stats.finite.all()):
            run.ema.update_parameters(run.model)
    return measured


def _log_row(run: Run, outputs: Outputs, progress: Progress, meter: TrainMeter, *, last: bool) -> None:
    """Add the sums of the meter to those of the epoch, and log the meter's as a row.

    With `last` nothing is logged, because `_end_epoch` logs a row for the whole epoch.
    """
    sums = meter.read_and_reset()
    progress.window_sums = {}
    bad = [name for name, key in zip(CHECKED, SUMS[-len(CHECKED) :], strict=True) if sums[key]]
    if bad and not run.skip_nonfinite:
        several = f"within the last {run.log_every} steps, up to step {progress.step}"
        raise _nonfinite_error(bad[0], f"at step {progress.step}" if run.log_every == 1 else several)
    progress.num_nonfinite += round(sums["num_nonfinite"])
    progress.epoch_sums = {name: progress.epoch_sums.get(name, 0.0) + sums[name] for name in SUMS}
    if not last and sums["num_steps"]:  # the means over skipped steps alone are undefined
        values = add_prefix("train", train_metrics(sums))
        outputs.loggers.scalars(progress.step, progress.epoch + 1, values | progress.last_hparams)


def _require_finite_step(stats: StepStats, step: int) -> None:
    if not stats.finite.all():
        bad = [name for name, good in zip(CHECKED, stats.finite.tolist(), strict=True) if not good]
        raise _nonfinite_error(bad[0], f"at step {step}")


def _require_finite(values: Mapping[str, float], when: str) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise _nonfinite_error(bad[0], when, can_skip=False)


def _nonfinite_error(name: str, when: str, *, can_skip: bool = True) -> TrainingError:
    """Return the error for a number that is not finite; with `can_skip` it also advises on_nonfinite=skip."""
    advice = "use a smaller lr or rho, warm-up (schedule.warmup_epochs=1) or grad_clip=5"
    return TrainingError(
        f"{name} is not finite {when}\n"
        "  the weights were not saved; earlier checkpoints are kept\n"
        f"  {advice}{', or skip such steps with on_nonfinite=skip' if can_skip else ''}"
    )


def _record_evaluation(progress: Progress, values: dict[str, float], selected_by: str | None) -> bool:
    """Store the metrics of an evaluated epoch and return whether the epoch is the best so far.

    `selected_by` is the metric of the validation set that decides; if it is None, the latest epoch is the best.
    """
    progress.last_metrics, progress.evaluated_epoch = dict(values), progress.epoch
    best = progress.best_metrics
    if selected_by and best and not is_better(selected_by, values[selected_by], best[selected_by]):
        progress.evaluations_since_best += 1
        return False
    progress.evaluations_since_best = 0
    progress.best_metrics, progress.best_epoch = dict(values), progress.epoch
    return True


def _warn_of_divergence(run: Run, loss: float, loss_before: float, *, last: bool) -> None:
    """Warn if the loss is more than `DIVERGED` times the loss of equal probabilities for all classes.

    Args:
        run: The run.
        loss: Mean training loss of the epoch.
        loss_before: Mean training loss of the epoch before. If it was above the limit, the warning was given then.
        last: Whether the epoch is the last one, which repeats the warning.
    """
    guess = math.log(max(2, len(run.classes)))
    if loss > DIVERGED * guess and (last or loss_before <= DIVERGED * guess):
        log.warning(
            "the training loss is %s, and %.2f is the loss of equal probabilities: the run has diverged\n"
            "  use a smaller lr or rho, warm-up (schedule.warmup_epochs=1) or grad_clip=5",
            _format_loss(loss), guess,
        )  # fmt: skip


def _format_loss(loss: float) -> str:
    """Return a loss, or a difference of losses, with four decimals; a huge one in scientific notation."""
    return f"{loss:.4f}" if abs(loss) < 1e6 else f"{loss:.3e}"


def _format_epoch(run: Run, progress: Progress, values: Mapping[str, float]) -> str:
    parts = [f"epoch {progress.epoch:{len(str(run.epochs))}}/{run.epochs}", f"step {progress.step}"]
    parts += [f"loss {_format_loss(values['train/loss'])}"]
    if "train/loss_gap" in values:
        parts += [f"sharpness {_format_loss(values['train/loss_gap'])}"]
    parts += [f"train {values['train/accuracy']:.2%}"]
    parts += [f"{name} {values[f'{name}/accuracy']:.2%}" for name in run.evaluations if f"{name}/accuracy" in values]
    parts += [f"{progress.num_images / max(progress.training_seconds, 1e-9):,.0f} images/s"]
    return "  ".join(parts)
