"""The training loop: epochs of steps, evaluation, logs, checkpoints. No maths and no configuration in here."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from sam_runner.capture import CapturedStep
from sam_runner.checkpoint import CheckpointFolder
from sam_runner.data.loader import Examples, Loader
from sam_runner.errors import InputError, TrainingError
from sam_runner.figures import confusion_picture, image_grid
from sam_runner.metrics import SUMS, TrainMeter, confusion_matrix, evaluation_metrics, train_metrics
from sam_runner.objective import Batch
from sam_runner.sam import SamStep
from sam_runner.schedules import Schedule
from sam_runner.seeding import RngState
from sam_runner.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """All that `fit` needs.

    Attributes:
        model: The network, on its device.
        step: Its optimizer step.
        train: Training batches.
        evaluations: Sets to evaluate after each epoch by name (``test``, ``validation``).
        classes: Names of the classes.
        lr: Factor of the initial learning rate by step.
        rho: Radius by step.
        epochs: Passes over the training set.
        max_steps: Stop after so many steps, also within an epoch.
        log_every: Steps between two rows of training metrics.
        ema: Exponential moving average of the weights, or None.
        data_digest: Of the data and their labels; a checkpoint goes with one.
    """

    model: nn.Module
    step: SamStep | CapturedStep
    train: Loader
    evaluations: Mapping[str, Loader]
    classes: tuple[str, ...]
    lr: Schedule
    rho: Callable[[int], float]
    epochs: int
    max_steps: int
    log_every: int
    ema: AveragedModel | None = None
    data_digest: str = ""


@dataclass(frozen=True)
class Outputs:
    """Where a run's numbers and state go."""

    tracker: Tracker
    checkpoints: CheckpointFolder


@dataclass
class Progress:
    """How far a run is; what a checkpoint holds beside model and optimizer.

    Attributes:
        epoch: Epochs done.
        step: Batches seen.
        updates: Steps that changed the weights, which is where the schedules are.
        final: Metrics of the latest evaluation, by tag.
        best: Those of the epoch with the highest validation accuracy; without a validation set, the latest.
        best_epoch: Its number, from 1.
        seconds: Time spent in training steps.
        images: Images trained on.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    final: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    seconds: float = 0.0
    images: int = 0


def fit(run: Run, outputs: Outputs, progress: Progress) -> Progress:
    """Train from `progress` to the end.

    Raises:
        TrainingError: Where the loss is no longer finite.
    """
    if progress.step == 0:
        first = next(run.train.epoch(0))
        outputs.tracker.image("train/images", image_grid(run.train.pixels(first.images[:32])), 0)
    while progress.epoch < run.epochs and progress.step < run.max_steps:
        values = _train_epoch(run, outputs.tracker, progress)
        values |= evaluate(run, outputs.tracker, progress)
        _require_finite(values, f"after epoch {progress.epoch}")  # before the weights become a checkpoint
        outputs.tracker.scalars(progress.step, progress.epoch, values)
        is_best = _note_best(progress, values, has_validation="validation" in run.evaluations)
        save(run, outputs, progress, is_best=is_best)
        log.info("%s", _epoch_line(run, progress, values))
    return progress


def _train_epoch(run: Run, tracker: Tracker, progress: Progress) -> dict[str, float]:
    """Train one epoch; its mean metrics by tag."""
    meter = TrainMeter(run.step.objective.device)
    sums = dict.fromkeys(SUMS, 0.0)
    perturbed = any(run.rho(update) > 0 for update in (progress.updates, run.max_steps - 1))
    run.model.train()
    started, images_before = time.perf_counter(), progress.images
    num_batches = min(len(run.train), run.max_steps - progress.step)
    batches = run.train.epoch(progress.epoch)
    settings: dict[str, float] = {}
    for number in tqdm(range(num_batches), desc=f"epoch {progress.epoch + 1}/{run.epochs}", leave=False, disable=None):
        settings = _train_step(run, meter, next(batches), progress)
        last = number == num_batches - 1
        if last or progress.step % run.log_every == 0:
            taken = meter.take()  # waits for the device
            sums = {name: sums[name] + taken[name] for name in SUMS}
            _require_finite(sums, f"within the last {run.log_every} steps before step {progress.step}")
            if not last and taken["num_steps"]:  # a row of skipped steps has nothing to tell
                values = _with_prefix("train", train_metrics(taken, perturbed=perturbed))
                tracker.scalars(progress.step, progress.epoch + 1, values | settings)
    if not sums["num_steps"]:
        raise TrainingError(
            f"every step of epoch {progress.epoch + 1} overflowed in fp16\n  use precision=bf16 or fp32"
        )
    seconds = time.perf_counter() - started
    progress.seconds += seconds
    progress.epoch += 1
    tracker.timing(progress.step, {"time/images_per_second": (progress.images - images_before) / seconds})
    return _with_prefix("train", train_metrics(sums, perturbed=perturbed)) | settings


def _train_step(run: Run, meter: TrainMeter, examples: Examples, progress: Progress) -> dict[str, float]:
    """One step; the learning rate, rho and loss scale that it was made with."""
    lr, rho = run.lr(progress.updates), run.rho(progress.updates)
    groups, scaler = run.step.optimizer.param_groups, run.step.objective.scaler
    for group in groups:
        group["lr"] = group["initial_lr"] * lr
    settings = {"lr": groups[0]["lr"], "rho": rho} | ({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {})
    stats = run.step(Batch(examples.images, examples.labels), rho)
    progress.step += 1
    progress.images += len(examples.labels)
    if not stats.skipped:
        meter.add(stats, examples.labels, examples.clean_labels)
        progress.updates += 1
        if run.ema is not None:
            run.ema.update_parameters(run.model)
    return settings


def _with_prefix(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _require_finite(values: Mapping[str, float], when: str) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"{bad[0]} is not finite {when}\n"
            "  a smaller lr or rho, warm-up (schedule.warmup_epochs=1) or grad_clip=5 may help\n"
            "  checkpoints of earlier epochs are kept"
        )


def predict(model: nn.Module, loader: Loader, autocast_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a whole set, in evaluation mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pairs = []
            for examples in loader.epoch():
                enabled = autocast_dtype is not None
                with torch.autocast(examples.images.device.type, dtype=autocast_dtype, enabled=enabled):
                    pairs.append((model(examples.images), examples.labels))
    finally:
        model.train(was_training)
    logits, labels = zip(*pairs, strict=True)
    return torch.cat(logits), torch.cat(labels)


def evaluate(run: Run, tracker: Tracker | None = None, progress: Progress | None = None) -> dict[str, float]:
    """Metrics of all evaluation sets by tag, ``test/accuracy`` say, and of the moving average as ``test_ema/accuracy``.

    With `tracker`, and where `progress` is at the end of the run, the confusion matrix of the test set goes to
    TensorBoard.
    """
    values: dict[str, float] = {}
    for name, loader in run.evaluations.items():
        logits, labels = predict(run.model, loader, run.step.objective.autocast_dtype)
        values |= _with_prefix(name, evaluation_metrics(logits, labels))
        if run.ema is not None:
            averaged, _ = predict(run.ema.module, loader, run.step.objective.autocast_dtype)
            values |= _with_prefix(f"{name}_ema", evaluation_metrics(averaged, labels))
        at_end = progress is not None and (progress.epoch == run.epochs or progress.step >= run.max_steps)
        if tracker is not None and progress is not None and at_end and name == "test":
            tracker.image(
                "test/confusion", confusion_picture(confusion_matrix(logits, labels), run.classes), progress.step
            )
    return values


def _note_best(progress: Progress, values: dict[str, float], *, has_validation: bool) -> bool:
    """Take in an epoch's metrics; whether it is the best so far. The test set never decides."""
    progress.final = dict(values)
    tag = "validation/accuracy"
    if has_validation and progress.best and values[tag] <= progress.best[tag]:
        return False
    progress.best, progress.best_epoch = dict(values), progress.epoch
    return True


def save(run: Run, outputs: Outputs, progress: Progress, *, is_best: bool) -> None:
    """Write a checkpoint from which `restore` continues."""
    rng = RngState.capture(run.step.objective.device)
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.step.optimizer.state_dict(),
        "scaler": run.step.objective.scaler.state_dict(),
        "ema": None if run.ema is None else run.ema.state_dict(),
        "rng": {"cpu": rng.cpu, "cuda": rng.cuda},
        "progress": dict(vars(progress)),
        "metrics_bytes": outputs.tracker.flush(),
        "data_digest": run.data_digest,
    }
    outputs.checkpoints.save(progress.step, state, is_best=is_best)


def restore(run: Run, state: Mapping[str, Any]) -> Progress:
    """Bring a run to where `save` left it.

    Raises:
        InputError: Where the data or their labels are not those that it was trained on.
    """
    if state["data_digest"] != run.data_digest:
        raise InputError(
            "the data or their labels have changed since this run was made\n  give another run_dir to train anew"
        )
    run.model.load_state_dict(state["model"])
    run.step.optimizer.load_state_dict(state["optimizer"])
    if run.step.objective.scaler.is_enabled():
        run.step.objective.scaler.load_state_dict(state["scaler"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    RngState(state["rng"]["cpu"], state["rng"]["cuda"]).restore(run.step.objective.device)
    return Progress(**state["progress"])


def _epoch_line(run: Run, progress: Progress, values: Mapping[str, float]) -> str:
    parts = [f"epoch {progress.epoch:{len(str(run.epochs))}}/{run.epochs}", f"step {progress.step}"]
    parts += [f"loss {values['train/loss']:.4f}"]
    if "train/loss_gap" in values:
        parts += [f"gap {values['train/loss_gap']:.4f}"]
    parts += [f"train {values['train/accuracy']:.2%}"]
    parts += [f"{name} {values[f'{name}/accuracy']:.2%}" for name in run.evaluations]
    parts += [f"{progress.images / max(progress.seconds, 1e-9):,.0f} images/s"]
    return "  ".join(parts)
