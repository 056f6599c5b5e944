"""Label noise: training labels as a function of (labels, rate, seed), applied once, before training.

A noise model is a function (labels, num_classes, seed, and its own options) -> labels; its options are the keys of its
file in conf/noise. One with an argument `images_NCHW` gets the training images too; one that takes `all_labels` in
place of `labels` gets those of the whole training set, before any are held out or left out.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_runner.data.datasets.plain_pickle import read_plain_file
from sam_runner.utils.errors import InputError
from sam_runner.utils.safe_load import holds_only_tensors
from sam_runner.utils.seeding import make_generator

CIFAR10_NEIGHBOURS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
CIFAR100_SUPERCLASSES = (  # of the fine labels in their order (Krizhevsky, 2009)
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip
RATE_DEVIATION = 0.1  # of the examples' own rates of instance-dependent noise; as published
HUMAN = {  # sets of the CIFAR-N files
    "aggre": "aggre_label", "random1": "random_label1", "random2": "random_label2", "random3": "random_label3",
    "worst": "worse_label", "noisy": "noisy_label",
}  # fmt: skip


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
    draws = make_generator(seed, "label noise")
    chosen = torch.randperm(len(labels), generator=draws)[: round(rate * len(labels))]
    noisy = labels.clone()
    if include_true_class:
        noisy[chosen] = torch.randint(num_classes, (len(chosen),), generator=draws)
    else:
        shift = torch.randint(1, num_classes, (len(chosen),), generator=draws)
        noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


def asymmetric(labels: Tensor, num_classes: int, seed: int, *, rate: float) -> Tensor:
    """Mistakes between classes that look alike: in each class that has such a neighbour a fraction `rate` goes there.

    For ten classes CIFAR-10's map of Patrini et al. (CVPR 2017, section 5): truck to automobile, bird to airplane, deer
    to horse, cat and dog to each other; 0.4 means that 20% of all labels are wrong. For a hundred classes CIFAR-100's,
    from there too: each class to the next of its superclass, in a circle.

    Args:
        labels: int64, (N,), of CIFAR-10 or CIFAR-100.
        num_classes: 10 or 100.
        seed: Of this noise.
        rate: In [0, 1]; exactly round(rate N_c) labels of each class c that has a neighbour.

    Raises:
        InputError: For any other number of classes.
    """
    if num_classes not in (10, 100):
        raise InputError(f"noise=asymmetric knows CIFAR-10 and CIFAR-100, not {num_classes} classes\n  use noise=pair")
    targets = torch.arange(num_classes)
    if num_classes == 10:
        for label, neighbour in CIFAR10_NEIGHBOURS.items():
            targets[label] = neighbour
    else:
        superclasses = torch.tensor(CIFAR100_SUPERCLASSES)
        for superclass in range(20):
            members = (superclasses == superclass).nonzero().flatten()
            targets[members] = members.roll(-1)
    return _towards(labels, targets, rate, seed)


def pair(labels: Tensor, num_classes: int, seed: int, *, rate: float) -> Tensor:
    """Pair flip (Han et al., NeurIPS 2018): a fraction `rate` of each class becomes the next class, in a circle.

    Args:
        labels: int64, (N,).
        num_classes: C.
        seed: Of this noise.
        rate: In [0, 1]; exactly round(rate N_c) labels of each class c.
    """
    return _towards(labels, torch.arange(1, num_classes + 1) % num_classes, rate, seed)


def _towards(labels: Tensor, targets: Tensor, rate: float, seed: int) -> Tensor:
    """Of each class c with targets[c] != c, exactly round(rate N_c) labels become targets[c]."""
    noisy = labels.clone()
    for label, target in enumerate(targets.tolist()):
        members = (labels == label).nonzero().flatten()
        if target != label:
            order = torch.randperm(len(members), generator=make_generator(seed, "label noise", label))
            noisy[members[order[: round(rate * len(members))]]] = target
    return noisy


def instance(labels: Tensor, num_classes: int, seed: int, images_NCHW: Tensor, *, rate: float) -> Tensor:
    """Instance-dependent noise (Xia et al., NeurIPS 2020, Part-dependent Label Noise, Algorithm 2).

    Each example has a rate of its own, normal around `rate` with deviation 0.1 and cut off to [0, 1]; where its label
    changes, the new one is drawn from the softmax over the other classes of its pixels times a random matrix of its
    class. Images that look alike get like labels. About, not exactly, round(rate N) labels change; near 0 and 1 the cut
    moves the mean (8% for rate 0).

    Args:
        labels: int64, (N,).
        num_classes: C.
        seed: Of this noise.
        images_NCHW: uint8, (N, ...), taken as values in [0, 1].
        rate: In [0, 1].
    """
    draws = make_generator(seed, "label noise")
    low, high = (0.5 * (1 + math.erf((edge - rate) / RATE_DEVIATION / 2**0.5)) for edge in (0, 1))
    spread, change, choice = torch.rand(3, len(labels), dtype=torch.float64, generator=draws)
    rates = rate + RATE_DEVIATION * torch.special.ndtri(low + spread * (high - low))
    noisy = labels.clone()
    for label in labels.unique().tolist():
        members = ((labels == label) & (change < rates)).nonzero().flatten()
        pixels = images_NCHW[members].flatten(1).double() / 255
        matrix = torch.randn(
            pixels.shape[1], num_classes, dtype=torch.float64, generator=make_generator(seed, "label noise", label)
        )
        scores = pixels @ matrix
        scores[:, label] = -math.inf
        reached = scores.softmax(1).cumsum(1)
        chosen = (choice[members, None] * reached[:, -1:] >= reached).sum(1)
        noisy[members] = chosen
    return noisy


def relabelled(labels: Tensor, num_classes: int, seed: int, *, file: str) -> Tensor:  # noqa: ARG001
    """Labels from a file: those that a trained network gives, say.

    Args:
        labels: int64, (N,).
        num_classes: C.
        seed: Without effect.
        file: A whole number in [0, C) for each training example, in their order: ``.npy``, or ``.pt`` of torch.save.

    Raises:
        InputError: Where the file cannot be read or holds anything else.
    """
    path = Path(os.path.expanduser(file))
    given = _read_labels(path)
    if given.shape != labels.shape:
        raise InputError(
            f"{path} has labels of shape {tuple(given.shape)}, the training set has {len(labels)} images\n"
            "  the same data, data.val_fraction and data.train_fraction are needed as when it was written"
        )
    wrong = ((given < 0) | (given >= num_classes)).nonzero().flatten()
    if len(wrong):
        index = int(wrong[0])
        raise InputError(f"{path}: example {index} has label {int(given[index])}; classes are 0 to {num_classes - 1}")
    return given


def _read_labels(path: Path) -> Tensor:
    """A tensor of whole numbers as int64; nothing in the file is run."""
    try:
        if path.suffix == ".npy":
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.is_file() and not holds_only_tensors(path):
            raise ValueError("it holds more than a tensor, or is no file of torch.save")
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        if (
            not isinstance(found, Tensor)
            or found.is_floating_point()
            or found.is_complex()
            or found.dtype == torch.bool
        ):
            raise ValueError("it holds no tensor of whole numbers")
        return found.long()
    except Exception as error:  # whatever a damaged file leads to
        raise InputError(f"{path} cannot be read as labels: {str(error)[:200]}\n  needed: .npy or .pt") from error


def human(all_labels: Tensor, num_classes: int, seed: int, *, file: str, set: str) -> Tensor:  # noqa: ARG001
    """Labels that people gave: CIFAR-10N and CIFAR-100N (Wei et al., ICLR 2022), from their files as published.

    The file's labels are in the order of CIFAR's training set. The k-th image of a class there is the k-th of it here,
    so a set whose classes come one after the other, as folders do, gets the same labels.

    Args:
        all_labels: int64, (N,), of the whole training set.
        num_classes: C.
        seed: Without effect.
        file: ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``; nothing in it is run.
        set: aggre, random1, random2, random3 or worst of CIFAR-10N; noisy of CIFAR-100N.

    Raises:
        InputError: Where the file is no such file, lacks the set, or is of other images.
    """
    path = Path(os.path.expanduser(file))
    columns = read_plain_file(path)
    clean, given = columns.get("clean_label"), columns.get(HUMAN[set])
    if given is None:
        known = ", ".join(name for name, key in HUMAN.items() if key in columns) or "none of CIFAR-N"
        raise InputError(f"{path} has no labels for noise.set={set}\n  it has: {known}")
    tensors = []
    for column in (clean, given):
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in "iu":
            raise InputError(f"{path} is no file of labels")
        tensors.append(torch.from_numpy(column.astype(np.int64)))
    theirs, noisy = tensors
    inside = all(bool(((part >= 0) & (part < num_classes)).all()) for part in tensors)
    if len(noisy) != len(theirs) or not inside or not torch.equal(theirs.sort().values, all_labels.sort().values):
        raise InputError(
            f"{path} has {len(theirs)} labels of other images than the {len(all_labels)} of this training set\n"
            "  it goes with CIFAR's own training set, whole or a part by data.val_fraction and data.train_fraction"
        )
    mine = all_labels.clone()
    mine[all_labels.argsort(stable=True)] = noisy[theirs.argsort(stable=True)]
    return mine
