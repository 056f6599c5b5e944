"""Labels of a user's own data: numbers of classes, or their names."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_runner.data.image_sets import find_wrong_label
from sam_runner.utils.errors import InputError

MAX_LISTED = 6  # labels in a message


def number_names(labels: Any, classes: tuple[str, ...], name: str) -> Any:
    """Return an array of class names as their numbers, int64 of the same shape; other labels as they are.

    Args:
        labels: Array, tensor or list of labels.
        classes: Names of the classes.
        name: Name of the set, for messages.

    Raises:
        InputError: If a label is no class.
    """
    if isinstance(labels, Tensor):
        return labels
    try:
        array = np.asarray(labels)
    except ValueError:  # a list of lists of several lengths
        return labels
    if not _holds_texts(array):
        return labels
    names, numbers = np.unique(array.astype(str), return_inverse=True)
    known = np.array([_number(text, classes, name) for text in names.tolist()], np.int64)
    return known[numbers].reshape(array.shape)


def _holds_texts(array: Any) -> bool:
    return array.dtype.kind in "UT" or (
        array.dtype.kind == "O" and array.size > 0 and all(isinstance(entry, str) for entry in array.flat)
    )


def to_label(value: Any, classes: tuple[str, ...], place: str) -> int:
    """Return the label of one example as a whole number.

    Args:
        value: A number, an array or tensor of one number, or the name of a class.
        classes: Names of the classes.
        place: Name of the example, for messages.

    Raises:
        InputError: If it is neither a whole number nor the name of a class.
    """
    is_array = isinstance(value, Tensor | np.generic | np.ndarray)
    label = value.item() if is_array and math.prod(value.shape) == 1 else value
    if isinstance(label, str):
        return _number(label, classes, place)
    if isinstance(label, bool) or not isinstance(label, int | float) or label != label // 1:
        raise InputError(
            f"{place} has the label {str(value)[:80]!r} of type {type(value).__name__}\n"
            "  accepted: the number of a class, 0, 1, ..., or its name"
        )
    return int(label)


def _number(label: str, classes: tuple[str, ...], place: str) -> int:
    if label not in classes:
        more = ", ..." if len(classes) > MAX_LISTED else ""
        raise InputError(
            f"{place} has the label {label[:80]!r}, which is not a class\n"
            f"  classes: {', '.join(classes[:MAX_LISTED])}{more}; from_dataset gets their names or their number"
        )
    return classes.index(label)


def check_labels(labels: Tensor, num_inputs: int, num_classes: int, name: str) -> Tensor:
    """Return labels as int64, (N,), in [0, num_classes).

    Args:
        labels: Labels of any numeric dtype.
        num_inputs: N.
        num_classes: Number of classes.
        name: Name of the set, for messages.

    Raises:
        InputError: If there is not one label for each input, or one is no class.
    """
    if num_inputs != len(labels) or labels.ndim != 1 or not num_inputs:
        way = ""
        if labels.ndim == 2 and len(labels) == num_inputs:
            way = "; give labels.ravel()" if labels.shape[1] == 1 else "; of one-hot labels give labels.argmax(1)"
        raise InputError(
            f"{name}: found {num_inputs} inputs and labels of shape {tuple(labels.shape)}\n"
            f"  accepted: at least one input, and labels of shape ({num_inputs},){way}"
        )
    if not torch.equal(labels.long().to(labels.dtype), labels):
        raise InputError(f"{name}: labels are {labels.dtype}, not whole numbers\n  accepted: classes 0, 1, ...")
    labels = labels.long()
    if fault := find_wrong_label(labels, num_classes):
        raise InputError(f"{name}: {fault}\n  {_describe_numbering(labels.unique().tolist(), num_classes)}")
    return labels


def _describe_numbering(found: list[int], num_classes: int) -> str:
    """Return how to number the labels `found`, in ascending order, from 0."""
    if found[0] > 0 and found == list(range(found[0], found[-1] + 1)) and len(found) <= num_classes:
        return f"the labels begin at {found[0]}: subtract {found[0]} in all sets"
    listed = ", ".join(map(str, found[:MAX_LISTED])) + (", ..." if len(found) > MAX_LISTED else "")
    if len(found) > num_classes:
        return f"labels found: {listed}; give all their classes to from_dataset"
    return f"labels found: {listed}; number them from 0, for example by numpy.searchsorted(values, labels)"
