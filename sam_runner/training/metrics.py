"""Metrics of training steps and of evaluated sets. Accuracies are fractions in [0, 1]."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.sam.step import StepStats

SUMS = (
    "num_steps", "num_images", "loss", "grad_norm", "num_perturbed", "num_images_perturbed", "loss_unperturbed",
    "loss_perturbed", "eps_norm", "correct", "num_clean", "correct_clean", "num_corrupted", "correct_corrupted",
    "recovered_corrupted", "num_nonfinite", "nonfinite_loss", "nonfinite_grad", "nonfinite_loss_perturbed",
    "nonfinite_final",
)  # fmt: skip
NUM_BINS = 15  # of the calibration error
MAX_LOGITS = 1 << 24  # logits whose metrics are computed at once: 128 MiB in double precision


class TrainMeter:
    """Sums over training steps. They stay on the device; only `read` and `read_and_reset` synchronise with it.

    Args:
        device: Device of the steps.
        initial_sums: Sums of this rank to start from, as `read` returned them; None starts from zero.
        context: The processes that share each step; all of them call `read_and_reset` together.
    """

    def __init__(
        self,
        device: torch.device,
        initial_sums: Mapping[str, float] | None = None,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._context = context
        values = [(initial_sums or {}).get(name, 0.0) for name in SUMS]
        self._sums = torch.tensor(values, dtype=torch.float64, device=device)

    def add(self, stats: StepStats, labels: Tensor, clean_labels: Tensor, share: float = 1.0) -> None:
        """Add a step. For a step with a non-finite loss or gradient, add only to the counts of such steps.

        The loss at w + eps and ||eps|| are those of steps with a second pass; the loss at w of these steps is added
        beside them.

        Args:
            stats: Statistics of the step.
            labels: Training labels of this rank's images, int64, (N,).
            clean_labels: Labels of the same images before label noise, int64, (N,).
            share: Number of this rank's images divided by the number of images of the step.
        """
        prediction = stats.outputs.argmax(1)
        correct, corrupted = prediction == labels, labels != clean_labels
        num_images = torch.full_like(stats.loss, len(labels))
        one = torch.full_like(stats.loss, share)
        is_perturbed = float(stats.passes.gradient > 1)
        num_perturbed = num_images * is_perturbed
        values = [
            one, num_images, stats.loss * num_images, stats.grad_norm * share,
            one * is_perturbed, num_perturbed, stats.loss * num_perturbed, stats.loss_perturbed * num_perturbed,
            stats.eps_norm * share * is_perturbed, correct.sum(), (~corrupted).sum(), (correct & ~corrupted).sum(),
            corrupted.sum(), (correct & corrupted).sum(), ((prediction == clean_labels) & corrupted).sum(),
        ]  # fmt: skip
        is_nonfinite = ~stats.finite.all()
        added = torch.stack([value.double() for value in values]).masked_fill(is_nonfinite, 0.0)
        self._sums += torch.cat([added, share * is_nonfinite[None].double(), share * (~stats.finite).double()])

    def read(self) -> dict[str, float]:
        """Return the sums of this rank by the names in `SUMS`; this synchronises with the device."""
        return dict(zip(SUMS, self._sums.tolist(), strict=True))

    def read_and_reset(self) -> dict[str, float]:
        """Return the sums over all ranks by the names in `SUMS`, and set them to zero; this synchronises likewise."""
        sums = self._context.all_reduce_sum(self._sums.clone()).tolist()
        self._sums.zero_()
        return dict(zip(SUMS, sums, strict=True))


def train_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Average the sums of a `TrainMeter`.

    Args:
        sums: Sums by the names in `SUMS`, over at least one step.

    Returns:
        ``loss`` at w, ``accuracy`` on the training labels and ``grad_norm``. If steps have a second pass, also the
        means over these steps of the loss at w + eps (``loss_perturbed``), of its difference to their loss at w
        (``loss_gap``) and of ||eps|| (``eps_norm``). With corrupted
        labels also ``accuracy_clean`` on the uncorrupted examples, and the fractions of the corrupted examples that
        are predicted as their wrong label (``memorised``) and as their true label (``recovered``).
    """
    values = {
        "loss": sums["loss"] / sums["num_images"],
        "accuracy": sums["correct"] / sums["num_images"],
        "grad_norm": sums["grad_norm"] / sums["num_steps"],
    }
    if sums["num_perturbed"]:
        values["loss_perturbed"] = sums["loss_perturbed"] / sums["num_images_perturbed"]
        values["loss_gap"] = values["loss_perturbed"] - sums["loss_unperturbed"] / sums["num_images_perturbed"]
        values["eps_norm"] = sums["eps_norm"] / sums["num_perturbed"]
    if sums["num_corrupted"]:
        values["accuracy_clean"] = sums["correct_clean"] / max(sums["num_clean"], 1)
        values["memorised"] = sums["correct_corrupted"] / sums["num_corrupted"]
        values["recovered"] = sums["recovered_corrupted"] / sums["num_corrupted"]
    return values


def evaluation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute the metrics of a whole set.

    Beside the logits this needs memory for a few times `MAX_LOGITS` numbers in double precision, however large the set
    is.

    Args:
        logits: Logits, floating point, (N, C).
        labels: True classes, int64, (N,).

    Returns:
        ``accuracy`` (top-1), ``nll`` (mean negative log-likelihood in nats), ``calibration_error`` and, with more than
        five classes, ``accuracy_top5``. Of equal logits the lower class ranks first, in top-1 and top-5.

        ``calibration_error`` is the expected one (Guo, Pleiss, Sun and Weinberger, ICML 2017, eq. 3): |accuracy -
        confidence| of each bin, weighted by its examples. 15 bins of equal width divide the confidences (0, 1]; a bin
        is closed on the right.
    """
    num_rows = max(1, MAX_LOGITS // logits.shape[1])
    parts = zip(logits.split(num_rows), labels.split(num_rows), strict=True)
    sums = [_sum_metrics(some.double(), true) for some, true in parts]
    totals = {name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]}
    return {name: float(total.abs().sum() / len(labels)) for name, total in totals.items()}


def _sum_metrics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the sums over some examples by metric; of the calibration error one sum for each bin."""
    sums = {
        "accuracy": (logits.argmax(1) == labels).double().sum(),
        "nll": torch.nn.functional.cross_entropy(logits, labels, reduction="sum"),
        "calibration_error": _sum_bins(logits, labels),
    }
    if logits.shape[1] > 5:
        true_logit = logits.gather(1, labels[:, None])
        is_lower_class = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        # Comparisons with NaN are false, so a true class with the logit NaN ranks last.
        ranks_first = (~(logits <= true_logit)) | ((logits == true_logit) & is_lower_class)
        sums["accuracy_top5"] = (ranks_first.sum(1) < 5).double().sum()
    return sums


def label_noise_metrics(predicted: Tensor, labels: Tensor, clean_labels: Tensor) -> dict[str, float]:
    """Compute how a whole set with wrong labels is predicted.

    Args:
        predicted: Predicted classes, int64, (N,).
        labels: Labels of the set, int64, (N,).
        clean_labels: Labels before label noise, int64, (N,).

    Returns:
        ``accuracy_clean``, ``memorised`` and ``recovered``, as `train_metrics` defines them; empty if no label is
        corrupted.
    """
    corrupted = labels != clean_labels
    if not corrupted.any():
        return {}
    correct, recovered = predicted == labels, predicted == clean_labels
    return {
        "accuracy_clean": float(correct[~corrupted].double().sum() / max(int((~corrupted).sum()), 1)),
        "memorised": float(correct[corrupted].double().mean()),
        "recovered": float(recovered[corrupted].double().mean()),
    }


def is_better(tag: str, value: float, other: float) -> bool:
    """Return whether a value of an accuracy is higher than another one, or of a negative log-likelihood lower."""
    return value < other if tag.endswith("/nll") else value > other


def _sum_bins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of (is correct - confidence) over the examples of each bin, (NUM_BINS,)."""
    confidence, prediction = logits.softmax(1).max(1)
    index = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    difference = (prediction == labels).to(confidence.dtype) - confidence
    return torch.zeros(NUM_BINS, dtype=confidence.dtype, device=logits.device).index_add(0, index, difference)


def confusion_matrix(logits: Tensor, labels: Tensor, classes_per_square: int = 1) -> Tensor:
    """Return the number of examples by (true class, predicted class); see `count_pairs`."""
    return count_pairs(labels, logits.argmax(1), logits.shape[1], classes_per_square)


def count_pairs(rows: Tensor, columns: Tensor, num_classes: int, classes_per_square: int = 1) -> Tensor:
    """Count pairs of classes, such as the true and the predicted one.

    Args:
        rows: First class of each pair, int64, (N,), in [0, num_classes).
        columns: Second class of each pair.
        num_classes: C.
        classes_per_square: K; so many neighbouring classes share a row and a column, the last ones perhaps fewer.

    Returns:
        int64, (S, S), S = C / K rounded up.
    """
    size = -(-num_classes // classes_per_square)
    row, column = rows // classes_per_square, columns // classes_per_square
    return torch.bincount(row * size + column, minlength=size**2).reshape(size, size)
