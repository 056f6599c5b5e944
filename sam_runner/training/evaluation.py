"""Evaluation: predictions and metrics over whole sets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sam_runner.data.loader import ImageLoader
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.models.outputs import get_logits
from sam_runner.training.metrics import confusion_matrix, evaluation_metrics
from sam_runner.training.pictures import count_classes_per_square, draw_confusion_matrix
from sam_runner.training.state import Run
from sam_runner.utils.signals import StopRequest, raise_for_signal

Metrics = dict[str, float]


def add_prefix(prefix: str, values: Mapping[str, float]) -> Metrics:
    """Return the values by ``prefix/name``."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def exchanges_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer evaluates other weights than it trains.

    Schedule-free optimizers (Defazio et al., arXiv 2405.15682) exchange them in their methods ``eval`` and ``train``.
    Other optimizers have no such methods.
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("eval", "train"))


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let the parameters hold the weights for evaluation inside the context; restore the bits of w on exit.

    See `exchanges_weights`.
    """
    if not exchanges_weights(optimizer):
        yield
        return
    params = [param for group in optimizer.param_groups for param in group["params"]]
    before = [param.detach().clone() for param in params]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for param, value in zip(params, before, strict=True):
                param.copy_(value)


def predict(
    model: nn.Module,
    loader: ImageLoader,
    autocast_dtype: torch.dtype | None = None,
    stop: StopRequest | None = None,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Compute the logits of a whole set in evaluation mode, and restore the mode of the model.

    Each rank evaluates the batches that `loader` gives it; every rank gets all logits.

    Args:
        model: The network.
        loader: Loader of the set.
        autocast_dtype: dtype of autocast; None: no autocast.
        stop: Stop request that is checked after every batch, or None.
        context: The processes that share a stop request.

    Returns:
        Logits (N, C) and labels (N,), int64, in the order of the set.

    Raises:
        RunInterrupt: If a rank received a stop request.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: a network may keep tensors that training uses later
            parts, batches = [], loader.epoch()
            for _ in range(-(-len(loader) // loader.context.world_size)):
                examples = next(batches, None)
                if examples is not None:
                    enabled = autocast_dtype is not None
                    with torch.autocast(examples.images.device.type, dtype=autocast_dtype, enabled=enabled):
                        parts.append((get_logits(model(examples.images)), examples.indices))
                if stop is not None:
                    raise_for_signal(*context.all_reduce_max(stop.signal_number))
            return _gather_logits(parts, loader), loader.labels
    finally:
        model.train(was_training)


def _gather_logits(parts: list[tuple[Tensor, Tensor]], loader: ImageLoader) -> Tensor:
    """Return the logits of all ranks in the order of the set, from (logits, indices in the set) of this rank."""
    (num_logits,) = loader.context.all_reduce_max(parts[0][0].shape[1] if parts else 0)
    all_logits = torch.zeros(len(loader.labels), num_logits, device=loader.labels.device, dtype=loader.dtype)
    for logits, indices in parts:
        all_logits[indices.to(all_logits.device)] = logits.to(all_logits.dtype)
    return loader.context.all_reduce_sum(all_logits)  # exact: each logit is non-zero on one rank only


def evaluate(
    run: Run,
    log_confusion: Callable[[Tensor], None] | None = None,
    stop: StopRequest | None = None,
    log_outputs: Callable[[str, Tensor, Tensor], None] | None = None,
) -> Metrics:
    """Return the metrics of all evaluated sets by tag, e.g. ``test/accuracy``; ``test_ema/accuracy`` of the average.

    Args:
        run: The run to evaluate.
        log_confusion: Function that is called with a picture of the confusion matrix of the test set, or None.
        stop: Stop request that is checked after every batch, or None.
        log_outputs: Function that is called with the name, the logits and the labels of each set, or None.

    Raises:
        RunInterrupt: If a rank received a stop request.
    """
    values: dict[str, float] = {}
    dtype = run.step.objective.autocast_dtype
    with evaluation_weights(run.step.optimizer), run.context.averaged_buffers(run.networks):
        for name, loader in run.evaluations.items():
            logits, labels = predict(run.model, loader, dtype, stop, run.context)
            values |= add_prefix(name, evaluation_metrics(logits, labels))
            if log_outputs is not None:
                log_outputs(name, logits, labels)
            if run.ema is not None:
                averaged, _ = predict(run.ema.module, loader, dtype, stop, run.context)
                values |= add_prefix(f"{name}_ema", evaluation_metrics(averaged, labels))
            if log_confusion is not None and name == "test":
                counts = confusion_matrix(logits, labels, count_classes_per_square(len(run.classes)))
                log_confusion(draw_confusion_matrix(counts, run.classes))
    return values
