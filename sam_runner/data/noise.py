"""Label noise: functions from labels to noisy labels, applied once before training by `splits.prepare_splits`.

A noise model is a function (labels, num_classes, seed, its own options) -> labels; its options are the settings of a
subclass of `NoiseConfig`. `noise_model` declares which input a noise model needs; without it a function gets the labels
of the images that are trained on.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from sam_runner.data.datasets.restricted_pickle import load_pickle_file
from sam_runner.data.image_sets import find_wrong_label, group_by_class
from sam_runner.utils.errors import InputError
from sam_runner.utils.safe_load import holds_only_tensors
from sam_runner.utils.seeding import make_generator

NoiseNeeds = Literal["labels", "images", "whole_set"]
NoiseFunction = TypeVar("NoiseFunction", bound=Callable[..., Tensor])

CIFAR10_NEIGHBOURS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
CIFAR100_SUPERCLASSES = (  # superclass of each fine label (Krizhevsky, 2009)
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
RATE_DEVIATION = 0.1  # standard deviation of the example's rate in instance-dependent noise, as published
CIFAR_N_KEYS = {  # key of each label set in the CIFAR-N files
    "aggre": "aggre_label", "random1": "random_label1", "random2": "random_label2", "random3": "random_label3",
    "worst": "worse_label", "noisy": "noisy_label",
}  # fmt: skip


def noise_model(*, needs: NoiseNeeds) -> Callable[[NoiseFunction], NoiseFunction]:
    """Declare which input a noise model needs.

    Args:
        needs: "labels": labels of the images that are trained on (the default of a function without this decorator).
            "images": their pixels too, as `images_NCHW`, uint8. "whole_set": labels of the whole training set, before
            any image is held out or left out.
    """

    def declare(function: NoiseFunction) -> NoiseFunction:
        function.needs = needs  # type: ignore[attr-defined]
        return function

    return declare


def noise_needs(function: Callable[..., Any]) -> NoiseNeeds:
    """Return the input that a noise model declares with `noise_model`."""
    needs: NoiseNeeds = getattr(function, "needs", "labels")
    return needs


def require_labels(labels: object, count: int, num_classes: int) -> Tensor:
    """Return what a noise model returned, if it is one label for each image.

    Args:
        labels: What the noise model returned.
        count: Number of images N.
        num_classes: C.

    Raises:
        InputError: If it is no int64 tensor of shape (N,) with values in [0, C).
    """
    needed = f"the noise model must return an int64 tensor of {count:,} labels in 0 to {num_classes - 1}"
    if not isinstance(labels, Tensor):
        raise InputError(f"{needed}, not a {type(labels).__name__}\n  return torch.as_tensor(labels)")
    if labels.dtype != torch.int64:
        raise InputError(f"{needed}, not {labels.dtype}\n  return labels.long()")
    if labels.shape != (count,):
        raise InputError(f"{needed}, not the shape {tuple(labels.shape)}\n  return one label for each image")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise InputError(
            f"{needed}; it returned {int(labels.min())} to {int(labels.max())}\n  return numbers of classes"
        )
    return labels


def none(labels: Tensor, num_classes: int, seed: int) -> Tensor:  # noqa: ARG001 - the signature of every noise model
    """Return the labels unchanged."""
    return labels


def symmetric(labels: Tensor, num_classes: int, seed: int, *, rate: float, include_true_class: bool = False) -> Tensor:
    """Replace the labels of exactly round(rate N) random examples by a random class.

    Args:
        labels: int64, (N,), in [0, num_classes); not modified.
        num_classes: C.
        seed: Seed of the noise; it gives the same labels on every machine.
        rate: Fraction of labels to replace, in [0, 1].
        include_true_class: False draws from the C - 1 other classes, so the fraction of wrong labels is `rate`. True
            draws from all C classes, so the fraction is about rate (C - 1) / C. The SAM paper does not say which of the
            two it uses.

    Returns:
        Noisy labels, int64, (N,).
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
    """Replace a fraction `rate` of each class that has a similar class by that class.

    For ten classes this is CIFAR-10's map of Patrini et al. (CVPR 2017, section 5): truck to automobile, bird to
    airplane, deer to horse, cat and dog to each other; with rate 0.4, 20% of all labels are wrong. For a hundred
    classes it is their map of CIFAR-100: each class becomes the next of its superclass, cyclically.

    Args:
        labels: Labels of CIFAR-10 or CIFAR-100, int64, (N,).
        num_classes: 10 or 100.
        seed: Seed of the noise.
        rate: In [0, 1]; exactly round(rate N_c) labels of each class c with a similar class are replaced.

    Raises:
        InputError: If `num_classes` is neither 10 nor 100.
    """
    if num_classes not in (10, 100):
        raise InputError(
            f"noise=asymmetric needs CIFAR-10 or CIFAR-100, not a set of {num_classes} classes\n  use noise=pair"
        )
    targets = torch.arange(num_classes)
    if num_classes == 10:
        for label, neighbour in CIFAR10_NEIGHBOURS.items():
            targets[label] = neighbour
    else:
        superclasses = torch.tensor(CIFAR100_SUPERCLASSES)
        for superclass in range(20):
            members = (superclasses == superclass).nonzero().flatten()
            targets[members] = members.roll(-1)
    return _flip_to_targets(labels, targets, rate, seed)


def pair(labels: Tensor, num_classes: int, seed: int, *, rate: float) -> Tensor:
    """Pair flip (Han et al., NeurIPS 2018): replace a fraction `rate` of each class by the next class, cyclically.

    Args:
        labels: int64, (N,).
        num_classes: C.
        seed: Seed of the noise.
        rate: In [0, 1]; exactly round(rate N_c) labels of each class c are replaced.
    """
    return _flip_to_targets(labels, torch.arange(1, num_classes + 1) % num_classes, rate, seed)


def _flip_to_targets(labels: Tensor, targets: Tensor, rate: float, seed: int) -> Tensor:
    """Replace exactly round(rate N_c) labels of each class c with targets[c] != c by targets[c]."""
    noisy = labels.clone()
    groups = group_by_class(labels, len(targets))
    for label, (members, target) in enumerate(zip(groups, targets.tolist(), strict=True)):
        if target != label:
            order = torch.randperm(len(members), generator=make_generator(seed, "label noise", label))
            noisy[members[order[: round(rate * len(members))]]] = target
    return noisy


@noise_model(needs="images")
def instance(labels: Tensor, num_classes: int, seed: int, images_NCHW: Tensor, *, rate: float) -> Tensor:
    """Instance-dependent noise (Xia et al., NeurIPS 2020, Part-dependent Label Noise, Algorithm 2).

    Each example has its own rate, from a normal distribution with mean `rate` and deviation 0.1, truncated to [0, 1].
    A replaced label is drawn from a softmax over the other classes; the logits are the pixels times a random matrix of
    the example's class. Similar images therefore get similar labels. About, not exactly, round(rate N) labels are
    replaced; near 0 and 1 the truncation moves the mean (8% for rate 0).

    Args:
        labels: int64, (N,).
        num_classes: C.
        seed: Seed of the noise.
        images_NCHW: uint8, (N, ...), scaled to [0, 1].
        rate: Mean rate, in [0, 1].
    """
    draws = make_generator(seed, "label noise")
    low, high = (0.5 * (1 + math.erf((edge - rate) / RATE_DEVIATION / 2**0.5)) for edge in (0, 1))
    quantiles, flips, choices = torch.rand(3, len(labels), dtype=torch.float64, generator=draws)
    rates = rate + RATE_DEVIATION * torch.special.ndtri(low + quantiles * (high - low))
    noisy = labels.clone()
    for label, group in enumerate(group_by_class(labels, num_classes)):
        members = group[flips[group] < rates[group]]
        if not len(members):
            continue
        pixels = images_NCHW[members].flatten(1).double() / 255
        matrix = torch.randn(
            pixels.shape[1], num_classes, dtype=torch.float64, generator=make_generator(seed, "label noise", label)
        )
        logits = pixels @ matrix
        logits[:, label] = -math.inf
        cumulative = logits.softmax(1).cumsum(1)
        noisy[members] = (choices[members, None] * cumulative[:, -1:] >= cumulative).sum(1)
    return noisy


def relabelled(labels: Tensor, num_classes: int, seed: int, *, file: str) -> Tensor:  # noqa: ARG001
    """Read the labels from a file, for example the predictions of a trained network.

    Args:
        labels: int64, (N,).
        num_classes: C.
        seed: Not used.
        file: One integer in [0, C) per training example, in their order: ``.npy``, or ``.pt`` of torch.save.

    Raises:
        InputError: If the file cannot be read or has other contents.
    """
    path = Path(os.path.expanduser(file))
    new_labels = _read_labels(path)
    if new_labels.shape != labels.shape:
        raise InputError(
            f"{path} has labels of shape {tuple(new_labels.shape)}, the training set has {len(labels)} images\n"
            "  use the data, data.val_fraction and data.train_fraction that the file was written with"
        )
    if fault := find_wrong_label(new_labels, num_classes):
        raise InputError(f"{path}: {fault}")
    return new_labels


def _read_labels(path: Path) -> Tensor:
    """Read a tensor of integers as int64, without running code from the file."""
    try:
        if path.suffix == ".npy":
            labels = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix in TEXT_SUFFIXES:
            raise ValueError(f"{path.suffix} files are not read; numpy.save('labels.npy', labels) writes one that is")
        elif path.is_file() and not holds_only_tensors(path):
            raise ValueError("it holds more than a tensor, or was not written by torch.save")
        else:
            labels = torch.load(path, map_location="cpu", weights_only=True)
        if (
            not isinstance(labels, Tensor)
            or labels.is_floating_point()
            or labels.is_complex()
            or labels.dtype == torch.bool
        ):
            raise ValueError("it holds no tensor of integers")
        return labels.long()
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(f"{path} cannot be read as labels: {str(error)[:200]}\n  needed: .npy or .pt") from error


@noise_model(needs="whole_set")
def human(labels: Tensor, num_classes: int, seed: int, *, file: str, set: str) -> Tensor:  # noqa: ARG001
    """Labels of human annotators: CIFAR-10N and CIFAR-100N (Wei et al., ICLR 2022), from the published files.

    The labels of the file are in the order of CIFAR's training set. The k-th image of a class in the file is matched
    with the k-th image of that class in `labels`, so image folders, which list class after class, get the same labels.

    Args:
        labels: Labels of the whole training set, int64, (N,).
        num_classes: C.
        seed: Not used.
        file: ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``, read without running code from it.
        set: aggre, random1, random2, random3 or worst of CIFAR-10N; noisy of CIFAR-100N.

    Raises:
        InputError: If it is no CIFAR-N file, lacks the set, or does not match the images.
    """
    path = Path(os.path.expanduser(file))
    columns = load_pickle_file(path)
    clean_column, noisy_column = columns.get("clean_label"), columns.get(CIFAR_N_KEYS[set])
    if noisy_column is None:
        available = ", ".join(name for name, key in CIFAR_N_KEYS.items() if key in columns) or "no set of CIFAR-N"
        raise InputError(f"{path} has no labels for noise.set={set}\n  it has: {available}")
    tensors = []
    for column in (clean_column, noisy_column):
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in "iu":
            raise InputError(f"{path} has no one-dimensional integer labels\n  it may be damaged; download it again")
        tensors.append(torch.from_numpy(column.astype(np.int64)))
    file_clean, file_noisy = tensors
    in_range = all(bool(((column >= 0) & (column < num_classes)).all()) for column in tensors)
    same_counts = torch.equal(file_clean.sort().values, labels.sort().values)
    if len(file_noisy) != len(file_clean) or not in_range or not same_counts:
        raise InputError(
            f"{path} has {len(file_clean)} labels that do not match the {len(labels)} images of this training set\n"
            "  use it with CIFAR's own training set (data.val_fraction and data.train_fraction are allowed)"
        )
    noisy = labels.clone()
    noisy[labels.argsort(stable=True)] = file_noisy[file_clean.argsort(stable=True)]
    return noisy
