"""Labelled examples of one split: images in memory, image files that are decoded in every epoch, or other inputs."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sam_runner.data.files.boxes import CropBox
from sam_runner.data.files.decode import read_crop
from sam_runner.data.files.kept_pixels import KeptPixels
from sam_runner.utils.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Images in memory and their labels.

    Attributes:
        images_NCHW: uint8, (N, C, H, W).
        labels: Labels to learn, after noise: int64, (N,), in [0, len(classes)).
        classes: Names of the classes.
        clean_labels: Labels before noise, int64, (N,); equal to `labels` without noise.
        names: Name of each image: the path of its file below the folder of the data, or its position in the data set
            (from 0, before images are held out or left out); None for images without a name.
    """

    images_NCHW: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    clean_labels: Tensor
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the examples at `indices`, in that order."""
        return replace(
            self,
            images_NCHW=self.images_NCHW[indices],
            labels=self.labels[indices],
            clean_labels=self.clean_labels[indices],
            names=None if self.names is None else tuple(self.names[index] for index in indices.tolist()),
        )

    def with_labels(self, labels: Tensor) -> "ImageSet":
        """Return the same images with other labels to learn."""
        return replace(self, labels=labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images_NCHW.shape
        return channels, height, width

    def digest_bytes(self) -> bytes | memoryview:
        """Return the bytes of the images, for `Splits.digest`."""
        view: memoryview = self.images_NCHW.contiguous().numpy().data
        return view

    def blank(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` images of zeros, (count, C, H, W)."""
        return torch.zeros(count, *self.shape, dtype=dtype)


@dataclass(frozen=True)
class ImageFiles:
    """Image files and their labels; `sam_runner.data.files` reads them.

    Attributes:
        root: Folder that `paths` are relative to.
        paths: One image file per example.
        labels: As in `ImageSet`.
        classes: Names of the classes.
        clean_labels: As in `ImageSet`.
        image_size: Side in pixels of the decoded square images.
        eval_crop_ratio: Side of the centre crop as a fraction of the shorter side, in (0, 1].
        cache: Value of ``data.cache``.
        kept: The decoded images in ``data.cache``; None if there are none.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    clean_labels: Tensor
    image_size: int
    eval_crop_ratio: float = 1.0
    cache: bool | str = False
    kept: KeptPixels | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageFiles":
        """Return the examples at `indices`, in that order."""
        return replace(
            self,
            paths=tuple(self.paths[index] for index in indices.tolist()),
            labels=self.labels[indices],
            clean_labels=self.clean_labels[indices],
            kept=None if self.kept is None else self.kept.subset(indices),
        )

    def read_crop(self, index: int, choose_box: Callable[[int, int], CropBox]) -> Tensor:
        """Read a part of an image from the decoded images or from its file; see `decode.read_crop`.

        Args:
            index: Position in the set.
            choose_box: Maps height and width of the image to the box to crop.

        Returns:
            RGB, uint8, (3, image_size, image_size).

        Raises:
            InputError: If the file cannot be decoded, or the decoded images are gone.
        """
        path = os.path.join(self.root, self.paths[index])
        if self.kept is None:
            return read_crop(path, choose_box, self.image_size)
        return self.kept.read_crop(index, path, choose_box, self.image_size)

    def with_labels(self, labels: Tensor) -> "ImageFiles":
        """Return the same images with other labels to learn."""
        return replace(self, labels=labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each image: its path."""
        return self.paths

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    def digest_bytes(self) -> bytes | memoryview:
        """Return the paths, for `Splits.digest`; reading all images would take as long as training."""
        return "\0".join(self.paths).encode("utf-8", "surrogateescape")

    def blank(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` images of zeros, (count, C, H, W)."""
        return torch.zeros(count, *self.shape, dtype=dtype)


@dataclass(frozen=True)
class UnreadImages(ImageFiles):
    """Image files that `splits.prepare_splits` decodes into memory, once it is known which of them a run uses.

    Attributes:
        image_size: As in `ImageFiles`; 0 keeps the images unchanged, which must then all have one size.
        num_workers: Number of threads that decode.
    """

    num_workers: int = 1


@dataclass(frozen=True)
class ArraySet:
    """Inputs in memory, of any shape, and their labels.

    They are not normalised unless asked for. Integers are not augmented, floats of shape (C, H, W) like images but
    without policy, and other floats by mixup only.

    Attributes:
        inputs: float32 or int64, (N, ...).
        labels: Labels to learn, after noise: int64, (N,), in [0, len(classes)).
        classes: Names of the classes.
        clean_labels: Labels before noise, int64, (N,).
        names: Name of each input: its position in the data set.
    """

    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    clean_labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ArraySet":
        """Return the examples at `indices`, in that order."""
        return replace(
            self,
            inputs=self.inputs[indices],
            labels=self.labels[indices],
            clean_labels=self.clean_labels[indices],
            names=tuple(self.names[index] for index in indices.tolist()),
        )

    def with_labels(self, labels: Tensor) -> "ArraySet":
        """Return the same inputs with other labels to learn."""
        return replace(self, labels=labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def digest_bytes(self) -> bytes | memoryview:
        """Return the bytes of the inputs, for `Splits.digest`."""
        view: memoryview = self.inputs.contiguous().numpy().data
        return view

    def blank(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` inputs of zeros; `dtype` is that of inputs that are not integers."""
        return torch.zeros(count, *self.shape, dtype=dtype if self.inputs.dtype.is_floating_point else torch.int64)


Images = ImageSet | ImageFiles | ArraySet


def make_image_set(
    images_NCHW: Tensor, labels: Tensor, classes: tuple[str, ...], names: tuple[str, ...] | None = None
) -> ImageSet:
    """Check images and labels and build an `ImageSet` without noise.

    Args:
        images_NCHW: uint8, (N, C, H, W).
        labels: Integers of any dtype, (N,), in [0, len(classes)).
        classes: Names of the classes, at least two.
        names: Name of each image; None: its position.

    Raises:
        InputError: If there are no images, or an argument is not as described.
    """
    if images_NCHW.dtype != torch.uint8 or images_NCHW.ndim != 4:
        raise InputError(f"images must be uint8 (N, C, H, W), not {images_NCHW.dtype} {tuple(images_NCHW.shape)}")
    if labels.ndim != 1 or len(labels) != len(images_NCHW) or len(labels) == 0:
        raise InputError(
            f"found {len(images_NCHW)} images and labels of shape {tuple(labels.shape)}; need one label per image"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels must be integers, not {labels.dtype}\n  give labels.long()")
    if len(classes) < 2:
        raise InputError(f"need at least 2 classes, found {len(classes)}: {', '.join(classes)}")
    if fault := find_wrong_label(labels, len(classes)):
        raise InputError(fault)
    labels = labels.long()
    return ImageSet(images_NCHW, labels, classes, labels, names or tuple(map(str, range(len(labels)))))


def find_wrong_label(labels: Tensor, num_classes: int) -> str:
    """Return a message about the first label that is not in [0, num_classes); "" if there is none."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if not len(wrong):
        return ""
    index = int(wrong[0])
    return f"example {index} has label {int(labels[index])}; classes are 0 to {num_classes - 1}"


def group_by_class(labels: Tensor, num_classes: int) -> list[Tensor]:
    """Return the ascending indices of the examples of each class, by one sort however many classes there are.

    Args:
        labels: int64, (N,), in [0, num_classes).
        num_classes: C, the length of the result.
    """
    order, counts = labels.argsort(stable=True), torch.bincount(labels, minlength=num_classes)
    return list(order.split(counts.tolist()))
