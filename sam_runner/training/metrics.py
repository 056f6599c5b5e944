"""Numbers about a model: sums over training steps, metrics of a whole set. Accuracies are fractions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.sam.step import StepStats

SUMS = (
    "num_steps", "num_images", "loss", "loss_perturbed", "grad_norm", "eps_norm", "correct",
    "num_clean", "correct_clean", "num_corrupted", "correct_corrupted", "recovered_corrupted", "num_nonfinite",
    "nonfinite_loss", "nonfinite_loss_perturbed", "nonfinite_grad", "nonfinite_final",
)  # fmt: skip


class TrainMeter:
    """Sums over training steps, kept on the device; only `peek` and `take` wait for it.

    Args:
        device: Of the steps.
        start: Sums to begin with, as `peek` gave them; None: zero.
        context: The processes whose steps are parts of the same steps; `peek` and `take` are for all of them at once.
    """

    def __init__(
        self,
        device: torch.device,
        start: Mapping[str, float] | None = None,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._context = context
        values = [0.0 if start is None or not context.is_main else start[name] for name in SUMS]
        self._sums = torch.tensor(values, dtype=torch.float64, device=device)

    def add(self, stats: StepStats, labels: Tensor, clean_labels: Tensor, share: float = 1.0) -> None:
        """Count a step. Of one that is not finite only that is counted.

        Args:
            stats: What the step saw.
            labels: The labels learnt, (N,).
            clean_labels: Those before noise, (N,).
            share: The part of the step's images that these are.
        """
        prediction = stats.outputs.argmax(1)
        correct, corrupted = prediction == labels, labels != clean_labels
        num_images = torch.full_like(stats.loss, len(labels))
        values = [
            torch.full_like(stats.loss, share), num_images,
            stats.loss * num_images, stats.loss_perturbed * num_images, stats.grad_norm * share, stats.eps_norm * share,
            correct.sum(), (~corrupted).sum(), (correct & ~corrupted).sum(),
            corrupted.sum(), (correct & corrupted).sum(), ((prediction == clean_labels) & corrupted).sum(),
        ]  # fmt: skip
        bad = ~stats.finite.all()
        counted = torch.stack([value.double() for value in values]).masked_fill(bad, 0.0)
        self._sums += torch.cat([counted, share * bad[None].double(), share * (~stats.finite).double()])

    def peek(self) -> dict[str, float]:
        """The sums by the names of `SUMS`; waits for the device."""
        return dict(zip(SUMS, self._context.all_reduce_sum(self._sums.clone()).tolist(), strict=True))

    def take(self) -> dict[str, float]:
        """The sums since the last call; waits for the device."""
        sums = self.peek()
        self._sums.zero_()
        return sums


def train_metrics(sums: Mapping[str, float], *, perturbed: bool) -> dict[str, float]:
    """Means of the sums of a `TrainMeter`.

    Args:
        sums: By the names of `SUMS`, at least one step.
        perturbed: Whether the steps had a second pass; without, there is no loss at w + eps to report.

    Returns:
        ``loss`` at w, ``accuracy`` against the labels learnt and ``grad_norm``; for steps of two passes
        ``loss_perturbed`` at w + eps, ``loss_gap`` between them and ``eps_norm``; where labels are corrupted,
        ``accuracy_clean`` on the others, ``memorised`` (corrupted examples predicted as their wrong label) and
        ``recovered`` (as their true one).
    """
    values = {
        "loss": sums["loss"] / sums["num_images"],
        "accuracy": sums["correct"] / sums["num_images"],
        "grad_norm": sums["grad_norm"] / sums["num_steps"],
    }
    if perturbed:
        values["loss_perturbed"] = sums["loss_perturbed"] / sums["num_images"]
        values["loss_gap"] = values["loss_perturbed"] - values["loss"]
        values["eps_norm"] = sums["eps_norm"] / sums["num_steps"]
    if sums["num_corrupted"]:
        values["accuracy_clean"] = sums["correct_clean"] / max(sums["num_clean"], 1)
        values["memorised"] = sums["correct_corrupted"] / sums["num_corrupted"]
        values["recovered"] = sums["recovered_corrupted"] / sums["num_corrupted"]
    return values


def evaluation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of a whole set.

    Args:
        logits: (N, C), floating point.
        labels: int64, (N,).

    Returns:
        ``accuracy`` (top-1), ``accuracy_top5`` (with more than five classes; of equal logits the lower class counts as
        first, as for top-1), ``nll`` (mean negative log-likelihood in nats) and ``calibration_error`` (see
        `calibration_error`).
    """
    logits = logits.double()
    values = {
        "accuracy": (logits.argmax(1) == labels).double().mean(),
        "nll": torch.nn.functional.cross_entropy(logits, labels),
        "calibration_error": calibration_error(logits, labels),
    }
    if logits.shape[1] > 5:
        own = logits.gather(1, labels[:, None])
        lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        before = (~(logits <= own)) | ((logits == own) & lower)
        values["accuracy_top5"] = (before.sum(1) < 5).double().mean()
    return {name: float(value) for name, value in values.items()}


def calibration_error(logits: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    """Expected calibration error: mean |accuracy - confidence| over equal bins of confidence, by their examples.

    Guo, Pleiss, Sun and Weinberger (ICML 2017), eq. 3, with their 15 bins; a bin is closed on the right.

    Args:
        logits: (N, C).
        labels: int64, (N,).
        num_bins: Bins over (0, 1].

    Returns:
        0-dim, in [0, 1].
    """
    confidence, prediction = logits.softmax(1).max(1)
    index = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    surplus = (prediction == labels).to(confidence.dtype) - confidence
    return torch.zeros(num_bins, dtype=confidence.dtype, device=logits.device).index_add(
        0, index, surplus
    ).abs().sum() / len(labels)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts of (true class, predicted class), int64, (C, C)."""
    num_classes = logits.shape[1]
    return torch.bincount(labels * num_classes + logits.argmax(1), minlength=num_classes**2).reshape(
        num_classes, num_classes
    )
