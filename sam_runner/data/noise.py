"""Label noise: training labels as a function of (labels, rate, seed), applied once, before training.

A noise model is a function (labels, num_classes, seed, and its own options) -> labels; its options are the keys of its
file in conf/noise.
"""

import torch
from torch import Tensor

from sam_runner.seeding import generator


def none(labels: Tensor, num_classes: int, seed: int) -> Tensor:  # noqa: ARG001 - the signature of every noise model
    """The labels as they are."""
    return labels


def symmetric(labels: Tensor, num_classes: int, seed: int, *, rate: float, include_true_class: bool = False) -> Tensor:
    """Give exactly round(rate N) labels, chosen at random, a new class at random.

    Args:
        labels: int64, (N,), in [0, num_classes).
        num_classes: C.
        seed: Of this noise; the same labels on every machine.
        rate: Fraction of labels chosen, in [0, 1].
        include_true_class: False draws from the C - 1 other classes, so a fraction `rate` is wrong; True from all C, so
            about rate (C - 1) / C is. Papers use both and seldom say which; the SAM paper does not.

    Returns:
        New labels, int64, (N,); `labels` is not changed.
    """
    draws = generator(seed, "label noise")
    chosen = torch.randperm(len(labels), generator=draws)[: round(rate * len(labels))]
    noisy = labels.clone()
    if include_true_class:
        noisy[chosen] = torch.randint(num_classes, (len(chosen),), generator=draws)
    else:
        shift = torch.randint(1, num_classes, (len(chosen),), generator=draws)
        noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy
