"""`from_dataset`: the sets of a run from a user's own arrays or torch datasets."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sam_runner.data.image_sets import ArraySet, ImageSet, make_image_set
from sam_runner.data.own_labels import check_labels, number_names, to_label
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import RngState
from sam_runner.utils.user_code import describe_error

log = logging.getLogger("sam_runner")


def from_dataset(train: Any, test: Any, classes: Sequence[str] | int, *, validation: Any = None) -> Splits:
    """Make the sets of a run from a user's own data; a function for ``data._target_`` returns them.

    Each of `train`, `test` and `validation` is a pair (inputs, labels) of arrays or tensors, or a torch ``Dataset``
    with a length, whose items are pairs (input, label). All items are read once, so random transformations of a
    dataset are drawn once too; use the settings of ``augment`` instead.

    uint8 inputs (N, C, H, W), (N, H, W, C) or (N, H, W) with one or three channels, and PIL images, are images: they
    are normalised and can be augmented. Other inputs (floats of any shape, integers such as tokens) reach the model as
    float32 or int64; floats are normalised and augmented only if ``data.normalisation`` and ``augment`` are set.

    Args:
        train: Training set.
        test: Test set.
        classes: Names of the classes, or their number. Labels are 0 to the number of classes minus 1, or such names.
        validation: Validation set, or None: ``data.val_fraction`` can hold out training examples.

    Raises:
        InputError: If a set is empty, its inputs differ in shape or are not finite, or a label is no class; the message
            names the item. Also if `classes` has no order or a name twice.
    """
    names = _name_classes(classes)
    parts = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    sets = {name: _make_set(part, names, name) for name, part in parts.items()}
    first = sets["train"]
    for name, part in sets.items():
        if part.shape != first.shape:
            raise InputError(f"{name}: inputs have shape {part.shape}, those of train {first.shape}")
        if _describe(part) != _describe(first):
            raise InputError(f"{name}: inputs are {_describe(part)}, those of train {_describe(first)}")
    return Splits(**sets)


def _name_classes(classes: Any) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers."""
    if isinstance(classes, Integral):
        return tuple(f"class {number}" for number in range(int(classes)))
    has_no_order = isinstance(classes, Set) and not isinstance(classes, KeysView)
    if not isinstance(classes, Iterable) or has_no_order or isinstance(classes, str | Mapping):
        raise InputError(
            f"classes is a {type(classes).__name__}\n"
            "  accepted: a list of the names of the classes in the order of their numbers, as list(class_to_idx) is, or"
            " their number"
        )
    names = tuple(map(str, classes))
    if repeated := [name for name, number in Counter(names).items() if number > 1]:
        raise InputError(f"two classes have the name {repeated[0]!r}\n  give each class a name of its own")
    return names


def _describe(part: ImageSet | ArraySet) -> str:
    return "images (uint8)" if isinstance(part, ImageSet) else str(part.inputs.dtype).removeprefix("torch.")


def _make_set(part: Any, classes: tuple[str, ...], name: str) -> ImageSet | ArraySet:
    if isinstance(part, ImageSet | ArraySet):
        return part
    if isinstance(part, tuple | list) and len(part) == 2 and hasattr(part[0], "shape"):
        inputs, labels = _to_tensor(part[0], name), _to_tensor(number_names(part[1], classes, name), name)
    elif isinstance(part, tuple | list) and len(part) == 2 and _holds_arrays(part[0]):
        raise InputError(f"{name}: {_describe_no_array(part[0])}")
    else:
        inputs, labels = _read_items(part, classes, name)
    labels = check_labels(labels, len(inputs), len(classes), name)
    if inputs.dtype == torch.uint8 and inputs.ndim in (3, 4):
        images = _to_channels_first(inputs, name)
        _warn_of_channels_last(images, name)
        return _label_errors(name, lambda: make_image_set(images, labels, classes))
    if inputs.ndim < 2:
        raise InputError(f"{name}: inputs have shape {tuple(inputs.shape)}\n  accepted: (examples, features) or more")
    if inputs.dtype.is_complex:
        raise InputError(f"{name}: inputs are complex\n  give their real and imaginary parts: torch.view_as_real")
    inputs = inputs.float() if inputs.dtype.is_floating_point else inputs.long()
    if inputs.dtype == torch.float32:
        bad = (~inputs.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise InputError(f"{name}: input {int(bad[0])} holds a value that is not finite\n  remove or replace it")
        _warn_of_channels_last(inputs, name)
    # The checks of labels and classes are those of images.
    checked = _label_errors(name, lambda: make_image_set(torch.zeros(len(labels), 1, 1, 1).byte(), labels, classes))
    return ArraySet(
        inputs.contiguous(), checked.labels, classes, checked.clean_labels, tuple(map(str, range(len(labels))))
    )


def _holds_arrays(value: Any) -> bool:
    """Return whether a value is a tuple or list of arrays, each of more than one number."""
    return isinstance(value, tuple | list) and any(
        isinstance(entry, Tensor | np.ndarray) and math.prod(entry.shape) > 1 for entry in value
    )


def _label_errors(name: str, make: Any) -> ImageSet:
    """Return what `make` returns; an `InputError` gets the name of the set."""
    try:
        made: ImageSet = make()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return made


def _to_tensor(value: Any, name: str) -> Tensor:
    """Return an array, a tensor or a list of numbers as a tensor on the CPU."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise InputError(f"{name}: a sparse tensor is not accepted\n  give tensor.to_dense()")
        return value.detach().cpu()
    if np.ma.is_masked(value):
        raise InputError(
            f"{name}: {np.count_nonzero(np.ma.getmaskarray(value)):,} values of an array are masked\n"
            "  leave these examples out, or fill the values: array.filled(0)"
        )
    try:
        array = np.array(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, RuntimeError) as error:  # NumPy's words do not name what was given
        raise InputError(f"{name}: {_describe_no_array(value)}") from error


def _describe_no_array(value: Any) -> str:
    """Return the message for a value that is no array of numbers of one shape."""
    accepted = "accepted: tensors, numpy arrays, lists of numbers"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} is not an array of numbers\n  {accepted}"
    entries = value if isinstance(value, tuple | list) else []
    shapes = [tuple(entry.shape) for entry in entries if isinstance(entry, Tensor | np.ndarray)]
    if not shapes:
        return f"a {type(value).__name__} is not an array of numbers of one shape\n  {accepted}"
    listed = ", ".join(map(str, shapes[:3])) + (", ..." if len(shapes) > 3 else "")
    way = "torch.stack" if len(set(shapes)) == 1 else "torch.cat, and let the network split it"
    return f"a {type(value).__name__} of arrays of the shapes {listed} is not one array\n  join them by {way}"


def _read_items(dataset: Any, classes: tuple[str, ...], name: str) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of all items of a torch ``Dataset``."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        way = "\n  give its dataset: loader.dataset" if isinstance(dataset, DataLoader) else ""
        raise InputError(
            f"{name} is a {type(dataset).__name__}\n"
            f"  accepted: a torch Dataset with a length, or a pair (inputs, labels) of arrays{way}"
        )
    inputs, labels = list[Tensor](), list[int]()
    for index in range(len(dataset)):
        try:
            item = dataset[index]
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{name}: item {index} cannot be read: {describe_error(error)}") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            size = f" of {len(item)} entries" if isinstance(item, tuple | list) else ""
            raise InputError(
                f"{name}: item {index} is a {type(item).__name__}{size}\n  accepted: a pair (input, label)"
            )
        inputs.append(_to_input(item[0], f"{name}: item {index}"))
        labels.append(to_label(item[1], classes, f"{name}: item {index}"))
        if inputs[-1].shape != inputs[0].shape or inputs[-1].dtype != inputs[0].dtype:
            raise InputError(
                f"{name}: item {index} has an input of shape {tuple(inputs[-1].shape)}, {inputs[-1].dtype}, item 0 of "
                f"{tuple(inputs[0].shape)}, {inputs[0].dtype}\n  give all inputs one shape and type"
            )
    if not inputs:
        raise InputError(f"{name} has no items\n  accepted: at least one")
    _warn_of_random_items(dataset, inputs[0], name)
    return torch.stack(inputs), torch.tensor(labels)


def _warn_of_random_items(dataset: Any, first: Tensor, name: str) -> None:
    """Warn if the first item has another input when it is read again: later commands would refuse the data.

    The random numbers of this reading are given back, so that a data set which its function has seeded stays the same.
    """
    state = RngState.capture(torch.device("cpu"))
    again = _to_input(dataset[0][0], f"{name}: item 0")
    state.restore(torch.device("cpu"))
    if not torch.equal(again, first):
        log.warning(
            "%s: item 0 has another input when it is read again, as with a random transformation: sam-eval and resume"
            " refuse data that differ from those of the run. Leave it out and use augment=..., or seed it in the"
            " function.",
            name,
        )


def _warn_of_channels_last(inputs: Tensor, name: str) -> None:
    """Warn of inputs (N, H, W, C) that look like images: only those of uint8 with one or three channels are turned."""
    if inputs.ndim != 4:
        return
    height, width, channels = inputs.shape[1:]
    is_square = height == width >= 8 and channels <= 12 and channels < height
    if is_square or (channels in (1, 3, 4) and height not in (1, 3, 4)):
        log.warning(
            "%s: inputs of shape (%d, %d, %d) have %d channels, the first axis. If they are images with the channels"
            " last: np.moveaxis(image, -1, 0).",
            *(name, height, width, channels, height),
        )


def _to_input(value: Any, place: str) -> Tensor:
    from PIL import Image

    from sam_runner.data.files.decode import to_8_bits

    if isinstance(value, Image.Image):
        try:
            image = to_8_bits(value)
        except ValueError as error:
            raise InputError(f"{place} is an image that cannot be read: {error}") from error
        value = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    if not isinstance(value, Tensor | np.ndarray | list | tuple | int | float):
        raise InputError(
            f"{place} has an input of type {type(value).__name__}\n  accepted: a tensor, an array, numbers, a PIL image"
        )
    if _holds_arrays(value):
        raise InputError(f"{place}: {_describe_no_array(value)}")
    return _to_tensor(value, place)


def _to_channels_first(images: Tensor, name: str) -> Tensor:
    """Return uint8 images (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in (1, 3):
        return images
    if images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    if images.shape[3] == 4:
        raise InputError(f"{name}: images have four channels\n  convert them to RGB, or give floats")
    return images
