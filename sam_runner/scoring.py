"""What a model is worth: predictions and metrics of whole sets."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sam_runner.data.loader import Loader
from sam_runner.figures import confusion_picture
from sam_runner.metrics import confusion_matrix, evaluation_metrics
from sam_runner.run import Run
from sam_runner.stopping import StopRequest

Metrics = dict[str, float]


def with_prefix(prefix: str, values: Mapping[str, float]) -> Metrics:
    """``prefix/name`` for each name."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def predict(
    model: nn.Module, loader: Loader, autocast_dtype: torch.dtype | None = None, stop: StopRequest | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a whole set, in evaluation mode; the model's mode is put back.

    Raises:
        Stopped: Where `stop` was made, after the batch.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pairs = []
            for examples in loader.epoch():
                enabled = autocast_dtype is not None
                with torch.autocast(examples.images.device.type, dtype=autocast_dtype, enabled=enabled):
                    pairs.append((model(examples.images), examples.labels))
                if stop is not None:
                    stop.check()
    finally:
        model.train(was_training)
    logits, labels = zip(*pairs, strict=True)
    return torch.cat(logits), torch.cat(labels)


def evaluate(run: Run, picture: Callable[[Tensor], None] | None = None, stop: StopRequest | None = None) -> Metrics:
    """Metrics of all evaluation sets by tag, ``test/accuracy`` say, and of the moving average as ``test_ema/accuracy``.

    Args:
        run: What is evaluated.
        picture: Is given the confusion matrix of the test set as a picture.
        stop: Looked at after every batch.

    Raises:
        Stopped: Where `stop` was made.
    """
    values: dict[str, float] = {}
    for name, loader in run.evaluations.items():
        logits, labels = predict(run.model, loader, run.step.objective.autocast_dtype, stop)
        values |= with_prefix(name, evaluation_metrics(logits, labels))
        if run.ema is not None:
            averaged, _ = predict(run.ema.module, loader, run.step.objective.autocast_dtype, stop)
            values |= with_prefix(f"{name}_ema", evaluation_metrics(averaged, labels))
        if picture is not None and name == "test":
            picture(confusion_picture(confusion_matrix(logits, labels), run.classes))
    return values
