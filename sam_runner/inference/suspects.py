"""Rank images by how much some runs doubt their labels; measure the ranking where clean labels are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sam_runner.inference.predictions import Predictions

if TYPE_CHECKING:
    import pandas

MEMORISED = 0.95  # accuracy on the training labels above which a run may have memorised wrong ones
DEPTHS = (100, 1000)  # numbers of images whose precision is told


@dataclass(frozen=True)
class Suspects:
    """Images in the order in which their labels should be checked.

    Attributes:
        predictions: Predictions of the runs for the images.
        self_confidence: Probability of the given label, the mean over the runs, float64, (N,), in [0, 1].
        order: Positions of the images, the least self-confidence first, int64, (N,).
    """

    predictions: Predictions
    self_confidence: Tensor
    order: Tensor

    @property
    def is_wrong(self) -> Tensor | None:
        """Whether the label of each image differs from the clean one, bool, (N,); None if no clean label differs."""
        examples = self.predictions.examples
        is_wrong = examples.labels != examples.clean_labels
        return is_wrong if bool(is_wrong.any()) else None


def rank_examples(predictions: Predictions) -> Suspects:
    """Rank examples by self-confidence: the probability that the mean of the runs gives to their label.

    Northcutt, Jiang and Chuang (JAIR 2021) call it self-confidence. They compute it out of sample, since a network
    that has memorised a wrong label is confident in it. Runs that predict their own training images must not have
    memorised them: see `find_memorising_runs`.
    """
    labels = predictions.examples.labels
    self_confidence = predictions.log_probabilities.gather(1, labels[:, None])[:, 0].exp()
    return Suspects(predictions, self_confidence, self_confidence.argsort(stable=True))


def find_memorising_runs(predictions: Predictions) -> dict[Path, float]:
    """Return the runs whose accuracy on the given labels is above `MEMORISED`, with this accuracy."""
    labels = predictions.examples.labels
    accuracies = {
        folder: float((logits.argmax(1) == labels).double().mean()) for folder, logits in predictions.logits.items()
    }
    return {folder: accuracy for folder, accuracy in accuracies.items() if accuracy > MEMORISED}


def precision_at(is_wrong: Tensor, depth: int) -> float:
    """Return the fraction of wrong labels among the first `depth` images of a ranking.

    Args:
        is_wrong: Whether each label is wrong, in the order of the ranking, bool, (N,).
        depth: Number of images, in [1, N].
    """
    return float(is_wrong[:depth].double().mean())


def average_precision(is_wrong: Tensor, score: Tensor) -> float:
    """Return the average precision of a ranking: sum_n (R_n - R_(n-1)) P_n over the distinct scores.

    P_n and R_n are precision and recall of the images with the n highest scores. Images of equal score count together,
    so the result does not depend on their order.

    Args:
        is_wrong: Whether each label is wrong, at least one of them, bool, (N,).
        score: Larger for an image that is to be checked earlier, (N,).
    """
    order = score.argsort(descending=True, stable=True)
    found = is_wrong[order].double().cumsum(0)
    ends = torch.cat([score[order].diff() != 0, torch.tensor([True])]).nonzero().flatten()  # last of equal scores
    precision, recall = found[ends] / (ends + 1), found[ends] / found[-1]
    return float((recall.diff(prepend=torch.zeros(1, dtype=torch.float64)) * precision).sum())


def describe_ranking(suspects: Suspects) -> str:
    """Return a line about the ranking; "" if no label differs from a known clean one."""
    is_wrong = suspects.is_wrong
    if is_wrong is None:
        return ""
    ranked = is_wrong[suspects.order]
    depths = [depth for depth in DEPTHS if depth <= len(ranked)] or [len(ranked)]
    parts = [f"precision at {depth:,} {precision_at(ranked, depth):.4f}" for depth in depths]
    quality = average_precision(is_wrong, -suspects.self_confidence)
    share = f"{int(is_wrong.sum()):,} of {len(ranked):,} labels are wrong ({float(is_wrong.double().mean()):.4f})"
    return ", ".join([*parts, f"average precision {quality:.4f}", share])


def suspects_table(suspects: Suspects) -> "pandas.DataFrame":
    """Return one row for each image, the most suspicious first.

    The columns are ``rank`` from 1; ``path`` or ``index``; ``label``; ``clean_label``, if one differs from its label;
    ``predicted``; ``self_confidence``, the probability of the label; and ``confidence``, the probability of the
    predicted class.
    """
    import pandas  # takes a second

    examples = suspects.predictions.examples
    confidence, predicted = suspects.predictions.log_probabilities.exp().max(1)
    order = suspects.order.tolist()

    def column(labels: Tensor) -> list[str]:
        return [examples.classes[label] for label in labels[order].tolist()]

    columns: dict[str, Any] = {
        "rank": range(1, len(order) + 1),
        examples.kind: [examples.names[position] for position in order],
        "label": column(examples.labels),
    }
    if suspects.is_wrong is not None:
        columns["clean_label"] = column(examples.clean_labels)
    columns |= {
        "predicted": column(predicted),
        "self_confidence": suspects.self_confidence[order].numpy(),
        "confidence": confidence[order].numpy(),
    }
    return pandas.DataFrame(columns)
