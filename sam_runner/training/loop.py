"""The training loop: epochs of steps, evaluation, logs, checkpoints. No maths and no configuration in here."""

import logging
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from sam_runner.data.loader import ImageBatch
from sam_runner.distributed.sharding import is_sharded
from sam_runner.sam.batch import Batch
from sam_runner.sam.step import CHECKED, StepStats
from sam_runner.training.evaluation import Metrics, evaluate, with_prefix
from sam_runner.training.metrics import SUMS, TrainMeter, train_metrics
from sam_runner.training.pictures import confusion_picture, image_grid
from sam_runner.training.state import CheckpointSchedule, Outputs, Progress, Run, save
from sam_runner.utils.errors import RunInterrupt, TrainingError
from sam_runner.utils.signals import StopRequest, raise_for_signal

log = logging.getLogger(__name__)


def fit(
    run: Run,
    outputs: Outputs,
    progress: Progress,
    stop: StopRequest,
    save_schedule: CheckpointSchedule | None = None,
) -> Progress:
    """Train from `progress` to the end.

    Args:
        run: What is trained; not shorter than `progress`.
        outputs: Where numbers and checkpoints go.
        progress: Where to start; it is moved on.
        stop: Looked at after every step and every batch of an evaluation; one rank's is all ranks'.
        save_schedule: When to save; None: at the end of every epoch.

    Raises:
        TrainingError: Where a loss or a gradient is not finite.
        RunInterrupt: Where `stop` was made; everything is saved then.
    """
    save_schedule = save_schedule or CheckpointSchedule()
    saved = progress.step
    if progress.step == 0:
        first = next(run.train.epoch(0))
        outputs.loggers.image("train/images", image_grid(run.train.denormalise(first.images[:32])), 0)
        if bool((run.train.labels != run.train.clean_labels).any()):
            outputs.loggers.image("train/label_transition", _transition(run), 0)
    try:
        while progress.epoch < run.epochs and (progress.batch or progress.step < run.max_steps):
            _train_epoch(run, outputs, progress, stop, save_schedule)
            if _end_epoch(run, outputs, progress, stop, save_schedule):
                saved = progress.step
                save_schedule.restart()
        if progress.batch == 0 and progress.evaluated < progress.epoch:  # it was meant to be longer when it was saved
            _require_finite(values := evaluate(run, None, stop), f"after epoch {progress.epoch}")
            is_best = _note_best(progress, values, has_validation="validation" in run.evaluations)
            save(run, outputs, progress, is_best=is_best, at_end=True)
    except RunInterrupt as stopped:
        if progress.step > saved:  # what is on the disk is of this very step otherwise
            save(run, outputs, progress, at_end=progress.batch == 0)
        log.info("%s: stopped after step %d, everything is saved", stopped.reason, progress.step)
        raise
    return progress


def _transition(run: Run) -> Tensor:
    """Which clean labels became which."""
    num_classes = len(run.classes)
    pairs = run.train.clean_labels * num_classes + run.train.labels
    counts = pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)
    return confusion_picture(counts, run.classes, "clean (rows), given (columns)")


def _train_epoch(
    run: Run, outputs: Outputs, progress: Progress, stop: StopRequest, save_schedule: CheckpointSchedule
) -> None:
    """Train what is left of an epoch; its sums are in `progress` then."""
    meter = TrainMeter(run.step.objective.device, progress.row, run.context)
    num_batches = min(len(run.train), run.max_steps - (progress.step - progress.batch))
    if progress.batch == num_batches:  # it was meant to be longer when it was saved
        _log_row(run, outputs, progress, meter, last=True)
    run.model.train()
    started, images_before = time.perf_counter(), progress.images
    batches = run.train.epoch(progress.epoch, start=progress.batch)
    title = f"epoch {progress.epoch + 1}/{run.epochs}"
    silent = None if run.context.is_main else True  # None: shown on a terminal
    for _ in tqdm(
        range(progress.batch, num_batches), title, num_batches, False, initial=progress.batch, disable=silent
    ):
        _train_step(run, meter, next(batches), progress)
        last = progress.batch == num_batches
        if last or progress.step % run.log_every == 0:
            _log_row(run, outputs, progress, meter, last=last)
        signal, due = run.context.all_reduce_max(
            stop.signal_number, not last and save_schedule.should_save(progress.step)
        )
        if signal or due:
            progress.row = meter.peek()
            raise_for_signal(signal)
            save(run, outputs, progress)
            save_schedule.restart()
    seconds = time.perf_counter() - started
    progress.seconds += seconds
    if progress.images > images_before:
        outputs.loggers.timing(progress.step, {"time/images_per_second": (progress.images - images_before) / seconds})


def _end_epoch(
    run: Run, outputs: Outputs, progress: Progress, stop: StopRequest, save_schedule: CheckpointSchedule
) -> bool:
    """Evaluate where it is due, log and, where that is due, save; whether it was saved."""
    if not progress.sums["num_steps"]:
        raise TrainingError(
            f"every step of epoch {progress.epoch + 1} overflowed or was not finite\n"
            "  use precision=bf16 or fp32, a smaller lr or rho"
        )
    last = progress.epoch + 1 == run.epochs or progress.step >= run.max_steps
    values: Metrics = with_prefix("train", train_metrics(progress.sums, perturbed=_perturbed(run, progress)))
    values |= progress.settings
    picture = (lambda image: outputs.loggers.image("test/confusion", image, progress.step)) if last else None
    evaluated = last or (progress.epoch + 1) % run.eval_every == 0
    if evaluated:
        values |= evaluate(run, picture, stop)
    else:
        weights = [param.detach().sum() for param in run.model.parameters() if not is_sharded(param)]
        values["weights"] = float(torch.stack(weights).sum()) if weights else 0.0
    _require_finite(values, f"after epoch {progress.epoch + 1}")  # before the weights become a checkpoint
    values.pop("weights", None)
    progress.epoch, progress.batch = progress.epoch + 1, 0
    progress.sums = dict.fromkeys(SUMS, 0.0)
    outputs.loggers.scalars(progress.step, progress.epoch, values)
    has_validation = "validation" in run.evaluations
    is_best = evaluated and _note_best(progress, values, has_validation=has_validation)
    log.info("%s", _epoch_line(run, progress, values))
    wanted = last or (is_best and has_validation) or outputs.checkpoints.keeps(progress.epoch)
    if wanted or run.context.all_reduce_max(save_schedule.should_save_at_epoch_end())[0]:
        save(run, outputs, progress, is_best=is_best, at_end=True)
        return True
    return False


def _train_step(run: Run, meter: TrainMeter, examples: ImageBatch, progress: Progress) -> None:
    """One step; `progress` holds the learning rate, rho and loss scale that it was made with."""
    lr, rho = run.lr(progress.updates), run.rho(progress.updates)
    groups, scaler = run.step.optimizer.param_groups, run.step.objective.scaler
    for group in groups:
        group["lr"] = group["initial_lr"] * lr
    progress.settings = {"lr": groups[0]["lr"], "rho": rho}
    if scaler.is_enabled():
        progress.settings["loss_scale"] = scaler.get_scale()
    weight = run.context.batch_weight(len(examples.labels), examples.global_batch_size)
    stats = run.step(Batch(examples.images, examples.targets, weight), rho, progress.step)
    if not run.skip_nonfinite and not scaler.is_enabled() and stats.finite.device.type == "cpu":
        _require_finite_step(stats, progress.step + 1)  # elsewhere the next row tells: it waits for the device anyway
    progress.step += 1
    progress.batch += 1
    progress.images += examples.global_batch_size
    if not stats.skipped:
        meter.add(stats, examples.labels, examples.clean_labels, len(examples.labels) / examples.global_batch_size)
        progress.updates += 1
        if run.ema is not None:
            run.ema.update_parameters(run.model)


def _log_row(run: Run, outputs: Outputs, progress: Progress, meter: TrainMeter, *, last: bool) -> None:
    """Move what the meter has to the sums of the epoch, and log it; the last row is the epoch's own."""
    taken = meter.take()  # waits for the device
    progress.row = dict.fromkeys(SUMS, 0.0)
    bad = [name for name, key in zip(CHECKED, SUMS[-len(CHECKED) :], strict=True) if taken[key]]
    if bad and not run.skip_nonfinite:
        raise _not_finite(bad[0], f"within the last {run.log_every} steps before step {progress.step}")
    progress.nonfinite += round(taken["num_nonfinite"])
    progress.sums = {name: progress.sums[name] + taken[name] for name in SUMS}
    if not last and taken["num_steps"]:  # a row of skipped steps has nothing to tell
        values = with_prefix("train", train_metrics(taken, perturbed=_perturbed(run, progress)))
        outputs.loggers.scalars(progress.step, progress.epoch + 1, values | progress.settings)


def _perturbed(run: Run, progress: Progress) -> bool:
    """Whether steps have a second pass, here or later: rho may be warming up."""
    return run.rho(max(progress.updates - 1, 0)) > 0 or run.rho(run.max_steps - 1) > 0


def _require_finite_step(stats: StepStats, step: int) -> None:
    if not stats.finite.all():
        bad = [name for name, good in zip(CHECKED, stats.finite.tolist(), strict=True) if not good]
        raise _not_finite(bad[0], f"at step {step}")


def _require_finite(values: Mapping[str, float], when: str) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise _not_finite(bad[0], when)


def _not_finite(what: str, when: str) -> TrainingError:
    return TrainingError(
        f"{what} is not finite {when}\n"
        "  it was not saved: earlier checkpoints are kept\n"
        "  a smaller lr or rho, warm-up (schedule.warmup_epochs=1) or grad_clip=5 may help; on_nonfinite=skip leaves "
        "such steps out"
    )


def _note_best(progress: Progress, values: dict[str, float], *, has_validation: bool) -> bool:
    """Take in an epoch's metrics; whether it is the best so far. The test set never decides."""
    progress.final, progress.evaluated = dict(values), progress.epoch
    tag = "validation/accuracy"
    if has_validation and progress.best and values[tag] <= progress.best[tag]:
        return False
    progress.best, progress.best_epoch = dict(values), progress.epoch
    return True


def _epoch_line(run: Run, progress: Progress, values: Mapping[str, float]) -> str:
    parts = [f"epoch {progress.epoch:{len(str(run.epochs))}}/{run.epochs}", f"step {progress.step}"]
    parts += [f"loss {values['train/loss']:.4f}"]
    if "train/loss_gap" in values:
        parts += [f"gap {values['train/loss_gap']:.4f}"]
    parts += [f"train {values['train/accuracy']:.2%}"]
    parts += [f"{name} {values[f'{name}/accuracy']:.2%}" for name in run.evaluations if f"{name}/accuracy" in values]
    parts += [f"{progress.images / max(progress.seconds, 1e-9):,.0f} images/s"]
    return "  ".join(parts)
