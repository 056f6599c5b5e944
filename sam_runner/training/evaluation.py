"""What a model is worth: predictions and metrics of whole sets."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sam_runner.data.loader import ImageLoader
from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.training.metrics import confusion_matrix, evaluation_metrics
from sam_runner.training.pictures import confusion_picture
from sam_runner.training.state import Run
from sam_runner.utils.signals import StopRequest, raise_for_signal

Metrics = dict[str, float]


def with_prefix(prefix: str, values: Mapping[str, float]) -> Metrics:
    """``prefix/name`` for each name."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def predict(
    model: nn.Module,
    loader: ImageLoader,
    autocast_dtype: torch.dtype | None = None,
    stop: StopRequest | None = None,
    context: DistributedContext = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of a whole set in its order, and labels (N,), in evaluation mode; the model's mode is put back.

    Ranks evaluate different batches (those that `loader` gives them); the result is complete on every rank.

    Raises:
        RunInterrupt: Where `stop` was made, after the batch.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts, batches = [], loader.epoch()
            for _ in range(-(-len(loader) // loader.context.world_size)):
                examples = next(batches, None)
                if examples is not None:
                    enabled = autocast_dtype is not None
                    with torch.autocast(examples.images.device.type, dtype=autocast_dtype, enabled=enabled):
                        parts.append((model(examples.images), examples.indices))
                if stop is not None:
                    raise_for_signal(*context.all_reduce_max(stop.signal_number))
            return _whole(parts, loader), loader.labels
    finally:
        model.train(was_training)


def _whole(parts: list[tuple[Tensor, Tensor]], loader: ImageLoader) -> Tensor:
    """The logits of all ranks, in the order of the set."""
    (num_logits,) = loader.context.all_reduce_max(parts[0][0].shape[1] if parts else 0)
    whole = torch.zeros(len(loader.labels), num_logits, device=loader.labels.device, dtype=loader.dtype)
    for logits, indices in parts:
        whole[indices.to(whole.device)] = logits.to(whole.dtype)
    return loader.context.all_reduce_sum(whole)  # of one number and zeros


def evaluate(run: Run, picture: Callable[[Tensor], None] | None = None, stop: StopRequest | None = None) -> Metrics:
    """Metrics of all evaluation sets by tag, ``test/accuracy`` say, and of the moving average as ``test_ema/accuracy``.

    Args:
        run: What is evaluated.
        picture: Is given the confusion matrix of the test set as a picture.
        stop: Looked at after every batch.

    Raises:
        RunInterrupt: Where `stop` was made.
    """
    values: dict[str, float] = {}
    dtype = run.step.objective.autocast_dtype
    with run.context.averaged_buffers(run.networks):
        for name, loader in run.evaluations.items():
            logits, labels = predict(run.model, loader, dtype, stop, run.context)
            values |= with_prefix(name, evaluation_metrics(logits, labels))
            if run.ema is not None:
                averaged, _ = predict(run.ema.module, loader, dtype, stop, run.context)
                values |= with_prefix(f"{name}_ema", evaluation_metrics(averaged, labels))
            if picture is not None and name == "test":
                picture(confusion_picture(confusion_matrix(logits, labels), run.classes))
    return values
