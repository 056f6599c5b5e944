"""A run: what it is made of, how far it is, and how that is saved and brought back."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from torch.optim.swa_utils import AveragedModel

from sam_runner.data.loader import ImageLoader
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext, floating_point_buffers
from sam_runner.distributed.sharding import full_state, load_full_model_state, load_full_optimizer_state
from sam_runner.sam.cuda_graph import CapturedStep
from sam_runner.sam.step import SamStep
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.metrics import SUMS
from sam_runner.training.metrics_logger import MetricsLoggers
from sam_runner.training.schedules import Schedule
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import RngState

T = TypeVar("T")


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
        eval_every: Epochs between two evaluations; the last epoch always has one.
        ema: Exponential moving average of the weights, or None.
        skip_nonfinite: Leave out and count steps whose loss or gradient is not finite; otherwise they end the run.
        data_digest: Of the data and their labels; a checkpoint goes with one.
        context: The processes that train together, each with such a run.
    """

    model: nn.Module
    step: SamStep | CapturedStep
    train: ImageLoader
    evaluations: Mapping[str, ImageLoader]
    classes: tuple[str, ...]
    lr: Schedule
    rho: Callable[[int], float]
    epochs: int
    max_steps: int
    log_every: int
    eval_every: int = 1
    ema: AveragedModel | None = None
    skip_nonfinite: bool = False
    data_digest: str = ""
    context: DistributedContext = SINGLE_PROCESS

    @property
    def networks(self) -> list[nn.Module]:
        """The network and its moving average."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]


@dataclass(frozen=True)
class Outputs:
    """Where a run's numbers and state go."""

    loggers: MetricsLoggers
    checkpoints: CheckpointFolder


@dataclass
class Progress:
    """How far a run is; what a checkpoint holds beside model and optimizer.

    Attributes:
        epoch: Epochs done, with their evaluation.
        batch: Batches of the current epoch that are done.
        step: Batches seen.
        updates: Steps that changed the weights, which is where the schedules are.
        final: Metrics of the latest evaluation, by tag.
        best: Those of the epoch with the highest validation accuracy; without a validation set, the latest.
        best_epoch: Its number, from 1.
        evaluated: Number of the epoch with the latest evaluation.
        seconds: Time spent in training epochs.
        images: Images trained on.
        nonfinite: Steps left out because a loss or gradient was not finite, apart from those of the loss scaler.
        sums: Of a `TrainMeter` over the current epoch, up to the last logged row.
        row: The same since that row.
        settings: Learning rate, rho and loss scale of the last step.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    updates: int = 0
    final: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    images: int = 0
    nonfinite: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    row: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    settings: dict[str, float] = field(default_factory=dict)


class CheckpointSchedule:
    """When to save.

    Args:
        steps: Steps between two checkpoints within an epoch, or None.
        seconds: Seconds between two checkpoints within an epoch, or None.
        min_interval: The end of an epoch that comes sooner after a checkpoint is not saved, unless it has to be.
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None, min_interval: float = 0.0) -> None:
        self._steps, self._seconds, self._least_seconds = steps, seconds, min_interval
        self.restart()

    def restart(self) -> None:
        """A checkpoint was written just now."""
        self._last_time = time.monotonic()

    def should_save(self, step: int) -> bool:
        """Whether one is to be written after `step`, within an epoch."""
        by_steps = self._steps is not None and step % self._steps == 0
        return by_steps or (self._seconds is not None and time.monotonic() - self._last_time >= self._seconds)

    def should_save_at_epoch_end(self) -> bool:
        """Whether one is to be written at the end of an epoch."""
        return time.monotonic() - self._last_time >= self._least_seconds


def save(run: Run, outputs: Outputs, progress: Progress, *, is_best: bool = False, at_end: bool = False) -> None:
    """Write a checkpoint from which `restore` continues; for all ranks at once, the first writes.

    Its ``model`` has the means of the ranks' batch-norm statistics; what each rank has of its own is beside it.

    Args:
        run: What is saved.
        outputs: Where to.
        progress: How far it is.
        is_best: Whether it is the best so far.
        at_end: Whether an epoch has just ended.
    """
    rng = RngState.capture(run.step.objective.device)
    buffers = [buffer.cpu() for buffer in floating_point_buffers(run.networks)] if run.context.world_size > 1 else []
    everyone = run.context.all_gather({"rng": {"cpu": rng.cpu, "cuda": rng.cuda}, "buffers": buffers})
    with run.context.averaged_buffers(run.networks):
        model, optimizer = full_state(run.model.state_dict()), full_state(run.step.optimizer.state_dict())
        method = full_state(run.step.method.state_dict())
        if not run.context.is_main:
            return
        state = {
            "model": model,
            "optimizer": optimizer,
            "method": method,
            "scaler": run.step.objective.scaler.state_dict(),
            "ema": None if run.ema is None else run.ema.state_dict(),
            "ranks": everyone,
            "progress": dict(vars(progress)),
            "loggers": outputs.loggers.flush(),
            "data_digest": run.data_digest,
        }
        epoch = progress.epoch if at_end else None
        outputs.checkpoints.save(progress.step, state, is_best=is_best, epoch=epoch)


def restore(run: Run, state: Mapping[str, Any]) -> Progress:
    """Bring a run to where `save` left it.

    Raises:
        InputError: Where the data or their labels are not those that it was trained on.
    """
    if state["data_digest"] != run.data_digest:
        raise InputError(
            "the data or their labels have changed since this run was made\n  give another run_dir to train anew"
        )
    load_full_model_state(run.model, state["model"])
    load_full_optimizer_state(run.step.optimizer, state["optimizer"])
    run.step.method.load_state_dict(state["method"])
    if run.step.objective.scaler.is_enabled():
        run.step.objective.scaler.load_state_dict(state["scaler"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    if len(state["ranks"]) == run.context.world_size:  # an evaluation may be made by fewer
        own = state["ranks"][run.context.rank]
        RngState(own["rng"]["cpu"], own["rng"]["cuda"]).restore(run.step.objective.device)
        if own["buffers"]:
            for buffer, saved in zip(floating_point_buffers(run.networks), own["buffers"], strict=True):
                buffer.copy_(saved)
    return Progress(**state["progress"])
