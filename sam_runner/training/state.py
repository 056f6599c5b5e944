"""The state of a run: its parts, its progress, and how a checkpoint saves and restores both."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sam_runner.data.loader import ImageLoader
from sam_runner.distributed.context import DistributedContext, floating_point_buffers
from sam_runner.distributed.sharding import full_state, load_full_model_state, load_full_optimizer_state
from sam_runner.sam.cuda_graph import CapturedStep
from sam_runner.sam.step import SamStep
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.metrics_logger import MetricsLoggers
from sam_runner.training.schedules import Schedule
from sam_runner.training.telemetry import Telemetry
from sam_runner.utils.errors import InputError
from sam_runner.utils.memory import measure_peak_memory
from sam_runner.utils.seeding import RngState

log = logging.getLogger("sam_runner")


@dataclass(frozen=True)
class Run:
    """The parts of a run, which `fit` trains.

    Attributes:
        model: The network, on its device.
        step: The optimizer step.
        train: Loader of the training set.
        evaluations: Loaders of the evaluated sets by name (``test``, ``validation``).
        classes: Names of the classes.
        lr: Function from the number of updates to the factor of the initial learning rate.
        rho: Function from the number of updates to the radius of the perturbation.
        epochs: Number of passes over the training set.
        max_steps: Number of steps after which training ends, also within an epoch.
        log_every: Number of steps between two rows of training metrics.
        eval_every: Number of epochs between two evaluations; the last epoch is always evaluated.
        patience: Number of evaluations without a better epoch after which training ends, or None. With it the run has
            the weights of its best epoch.
        metric: Tag of the evaluated metric that chooses the best epoch, e.g. ``validation/accuracy``.
        ema: Exponential moving average of the weights, or None.
        skip_nonfinite: Whether a step whose loss or gradient is not finite is skipped and counted; otherwise it ends
            the run.
        data_digest: Digest of the data and the labels; a checkpoint can only be restored with the same data.
        context: The processes that train together; each has its own `Run`.
        telemetry: What the run measures while it trains.
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
    eval_every: int
    patience: int | None
    metric: str
    ema: AveragedModel | None
    skip_nonfinite: bool
    data_digest: str
    context: DistributedContext
    telemetry: Telemetry

    @property
    def selected_by(self) -> str | None:
        """Tag of the metric that chooses the best epoch; None without a validation set."""
        return self.metric if "validation" in self.evaluations else None

    def final_metrics(self, progress: "Progress") -> dict[str, float]:
        """Return the metrics of the weights that the run has at its end, by tag."""
        return progress.last_metrics if self.patience is None else progress.best_metrics

    def stops_early(self, progress: "Progress") -> bool:
        """Return whether the patience is at its end; all ranks call it together and agree."""
        if self.patience is None:
            return False
        return bool(self.context.all_reduce_max(progress.evaluations_since_best >= self.patience)[0])

    @property
    def networks(self) -> list[nn.Module]:
        """The network and, if there is one, its moving average."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]


@dataclass(frozen=True)
class Outputs:
    """Where a run writes its metrics and its checkpoints.

    Attributes:
        loggers: The loggers of metrics and pictures.
        checkpoints: The checkpoints of the run.
    """

    loggers: MetricsLoggers
    checkpoints: CheckpointFolder


@dataclass
class Progress:
    """The progress of a run; a checkpoint stores it beside model and optimizer.

    Attributes:
        epoch: Number of completed epochs. An epoch is complete after its evaluation, if it has one.
        batch: Number of completed batches of the current epoch.
        step: Number of completed steps, including the steps that were skipped.
        num_updates: Number of steps except those that the loss scaler skipped; the position in the schedules.
        measured_step: Number of the last step that telemetry measured, from 1; 0 if there is none.
        num_images: Number of training images seen.
        num_nonfinite: Number of steps skipped because a loss or gradient was not finite. Steps that the loss scaler
            skipped are not included.
        gradient_evaluations: Gradients of batches that were evaluated, in units of a batch: 1 per step of the base
            optimizer, 2 per step of SAM, a fraction where a method evaluates a part of a batch.
        images_forward: Training images that went through a forward pass, over all processes. (A method that chooses a
            part of the batch in each process counts the share of the main process.)
        images_backward: The same for backward passes.
        training_seconds: Seconds spent in training epochs, without evaluation and checkpoints.
        peak_memory_bytes: Largest memory of the main process up to the last checkpoint, see
            `sam_runner.utils.memory.measure_peak_memory`.
        peak_memory_of: Whose memory was measured: ``cuda`` or ``process``.
        last_metrics: Metrics of the latest evaluated epoch by tag.
        best_metrics: Metrics of the best epoch by `Run.selected_by`; without a validation set those of the latest
            evaluated epoch.
        evaluated_epoch: Number of the latest evaluated epoch, from 1; 0 if there is none.
        best_epoch: Number of the epoch of `best_metrics`, from 1; 0 if there is none.
        evaluations_since_best: Number of evaluations after that of `best_epoch`.
        epoch_sums: Sums of a `TrainMeter` over the current epoch up to its last logged row; empty before the first.
        window_sums: Sums of this rank's `TrainMeter` since the last logged row; empty before the next step.
        last_hparams: Learning rate, rho and loss scale of the last step.
        before_end: If `max_steps` ended the run within an epoch: the progress and the states of the loggers at the
            last step, before the run counted it as the end of an epoch. Otherwise empty. A run that is made longer
            continues from there.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    num_updates: int = 0
    measured_step: int = 0
    num_images: int = 0
    num_nonfinite: int = 0
    gradient_evaluations: float = 0.0
    images_forward: float = 0.0
    images_backward: float = 0.0
    training_seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_memory_of: str = ""
    last_metrics: dict[str, float] = field(default_factory=dict)
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluated_epoch: int = 0
    best_epoch: int = 0
    evaluations_since_best: int = 0
    epoch_sums: dict[str, float] = field(default_factory=dict)
    window_sums: dict[str, float] = field(default_factory=dict)
    last_hparams: dict[str, float] = field(default_factory=dict)
    before_end: dict[str, Any] = field(default_factory=dict)

    def record_peak_memory(self, device: torch.device) -> None:
        """Update the peak by that of this process; it is a maximum over the processes that continued the run."""
        measured, self.peak_memory_of = measure_peak_memory(device)
        self.peak_memory_bytes = max(self.peak_memory_bytes, measured)

    def remember_before_end(self, window_sums: Mapping[str, float], loggers: Mapping[str, Any]) -> None:
        """Store the progress within the last epoch, before its incomplete end is logged and evaluated.

        Args:
            window_sums: Sums of the meter since the last logged row.
            loggers: States of the loggers.
        """
        within = {**vars(self), "window_sums": dict(window_sums), "before_end": {}}
        self.before_end = {"progress": copy.deepcopy(within), "loggers": dict(loggers)}

    def sums_of_rank(self) -> list[dict[str, float]]:
        """Return the sums that differ between ranks: those of `window_sums`, here and in `before_end`."""
        return [part["window_sums"] for part in self._parts()]

    def set_sums_of_rank(self, sums: Sequence[dict[str, float]]) -> None:
        """Restore what `sums_of_rank` returned."""
        for part, value in zip(self._parts(), sums, strict=True):
            part["window_sums"] = value

    def _parts(self) -> list[dict[str, Any]]:
        return [vars(self), self.before_end["progress"]] if self.before_end else [vars(self)]

    def return_to_before_end(self) -> dict[str, Any]:
        """Undo the end within an epoch; return the states that the loggers had before it."""
        loggers: dict[str, Any] = self.before_end["loggers"]
        vars(self).update(copy.deepcopy(self.before_end["progress"]))
        return loggers


class UnsavedAttributes:
    """Finds public attributes of the method and the base optimizer that training changes and no checkpoint holds.

    They can be texts, numbers, or lists and dictionaries of these; `Method.state` and `Optimizer.state_dict` are saved.

    Args:
        step: The optimizer step, before the first batch.
    """

    def __init__(self, step: SamStep | CapturedStep) -> None:
        places = ((step.method, "as tensors in self.state"), (step.optimizer, "in param_groups or state"))
        self._watched = [(part, place, _plain_attributes(part)) for part, place in places]

    def warn(self) -> None:
        """Name the attributes of a part that have changed, once."""
        for watched in [*self._watched]:
            part, place, before = watched
            names = [name for name, value in _plain_attributes(part).items() if before.get(name) != value]
            if names:
                self._watched.remove(watched)
                log.warning(
                    "%s changes its attributes %s, which checkpoints do not hold: a continued run begins with other"
                    " values\n  keep them %s; begin a name with _ if no later step reads its value",
                    *(type(part).__name__, ", ".join(names), place),
                )


def _plain_attributes(part: object) -> dict[str, str]:
    """Return attributes that are plain values, as text."""
    return {
        name: repr(value)
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in ("state", "staged", "param_groups") and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, str | int | float)


def save_checkpoint(
    run: Run, outputs: Outputs, progress: Progress, *, is_best: bool = False, at_epoch_end: bool = False
) -> None:
    """Write a checkpoint from which `restore_state` continues. All ranks call it together; the main process writes.

    The model is saved with batch-norm statistics that are averaged over the ranks. The random state, the buffers and
    the sums of each rank are saved too.

    Args:
        run: The run.
        outputs: Its checkpoints and loggers.
        progress: Its progress.
        is_best: Whether the checkpoint is the best so far.
        at_epoch_end: Whether the checkpoint ends an epoch.
    """
    objective = run.step.objective
    progress.record_peak_memory(objective.device)
    rng = RngState.capture(objective.device, objective.generators).state_dict()
    buffers = [buffer.cpu() for buffer in floating_point_buffers(run.networks)] if run.context.world_size > 1 else []
    rank_states = run.context.all_gather({"rng": rng, "buffers": buffers, "sums": progress.sums_of_rank()})
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
            "ranks": rank_states,
            "progress": dict(vars(progress)),
            "loggers": outputs.loggers.flush(),
            "data_digest": run.data_digest,
        }
        epoch = progress.epoch if at_epoch_end else None
        is_incomplete = at_epoch_end and bool(progress.before_end)
        outputs.checkpoints.save(progress.step, state, is_best=is_best, epoch=epoch, is_incomplete=is_incomplete)


def restore_state(run: Run, state: Mapping[str, Any]) -> Progress:
    """Load the state of a checkpoint into a run.

    The random state, the buffers and the sums of each rank are restored only if the number of ranks is the same; a
    checkpoint of several ranks can be evaluated by one process.

    Args:
        run: The run; its model, optimizer, loss scaler and moving average are overwritten.
        state: The state that `save_checkpoint` wrote.

    Returns:
        The progress of the run at the checkpoint.

    Raises:
        InputError: If the data or the labels differ from those that the run was trained on.
    """
    if state["data_digest"] != run.data_digest:
        raise InputError(
            "the data or their labels have changed since this run was made\n"
            "  to continue it, give the same images and labels; for a new run: another run_dir, or config=RUN\n"
            "  a function of your own has to return the same data in every call: seed its splits and transformations"
        )
    load_full_model_state(run.model, state["model"])
    load_full_optimizer_state(run.step.optimizer, state["optimizer"])
    run.step.method.load_state_dict(state["method"])
    if run.step.objective.scaler.is_enabled() and state["scaler"]:  # empty if the run had no loss scaler until now
        run.step.objective.scaler.load_state_dict(state["scaler"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    progress = Progress(**state["progress"])
    if len(state["ranks"]) == run.context.world_size:
        own = state["ranks"][run.context.rank]
        objective = run.step.objective
        RngState.from_state_dict(own["rng"]).restore(objective.device, objective.generators)
        if run.context.world_size > 1:
            for buffer, saved in zip(floating_point_buffers(run.networks), own["buffers"], strict=True):
                buffer.copy_(saved)
            progress.set_sums_of_rank(own["sums"])
    return progress
