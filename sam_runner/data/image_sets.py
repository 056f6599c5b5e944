"""Image sets: held in memory as one uint8 tensor, or as files that are decoded when they are wanted.

A data set is a function that returns `Splits`; its arguments are the keys of its file in conf/data. To add one, write
the function, the file and a test.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import make_generator


@dataclass(frozen=True)
class ImageSet:
    """Images and labels of one split.

    Attributes:
        images_NCHW: uint8, (N, C, H, W).
        labels: int64, (N,), in [0, len(classes)); the labels to learn, after noise.
        classes: Names of the classes.
        clean_labels: The labels before noise; equal to `labels` where there is none.
    """

    images_NCHW: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    clean_labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The examples at `indices`, in that order."""
        return replace(
            self,
            images_NCHW=self.images_NCHW[indices],
            labels=self.labels[indices],
            clean_labels=self.clean_labels[indices],
        )

    def relabelled(self, labels: Tensor) -> "ImageSet":
        """The same images under other labels to learn."""
        return replace(self, labels=labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images_NCHW.shape
        return channels, height, width

    def content(self) -> bytes | memoryview:
        """What identifies the images: their bytes."""
        view: memoryview = self.images_NCHW.contiguous().numpy().data
        return view


@dataclass(frozen=True)
class ImageFiles:
    """Image files and labels of one split; see `sam_runner.data.decode` for how they are read.

    Attributes:
        root: Folder that the paths are relative to.
        paths: One a picture.
        labels: As in `ImageSet`.
        classes: Names of the classes.
        clean_labels: As in `ImageSet`.
        image_size: Side in pixels of the squares that they are scaled to.
        eval_crop_ratio: Side of the square in the middle that is looked at without augmentation, as a part of the shorter side.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    clean_labels: Tensor
    image_size: int
    eval_crop_ratio: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "ImageFiles":
        """The examples at `indices`, in that order."""
        return replace(
            self,
            paths=tuple(self.paths[index] for index in indices.tolist()),
            labels=self.labels[indices],
            clean_labels=self.clean_labels[indices],
        )

    def relabelled(self, labels: Tensor) -> "ImageFiles":
        """The same images under other labels to learn."""
        return replace(self, labels=labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    def content(self) -> bytes | memoryview:
        """What identifies the images: their names; reading all of them would take as long as training."""
        return "\0".join(self.paths).encode("utf-8", "surrogateescape")


Images = ImageSet | ImageFiles


@dataclass(frozen=True)
class Splits:
    """Training, held-out and test sets; `validation` is None where nothing is held out."""

    train: Images
    test: Images
    validation: Images | None = None

    def relabelled(self, labels: Tensor) -> "Splits":
        """The same images under other labels to learn in the training set."""
        return replace(self, train=self.train.relabelled(labels))

    def digest(self) -> str:
        """Hex sha256 over shapes, classes, images and labels: what a result depends on beside the settings."""
        total = hashlib.sha256()
        for part in (self.train, self.test, self.validation):
            if part is not None:
                total.update(repr(((len(part), *part.shape), part.classes)).encode())
                for content in (part.content(), part.labels.numpy().data, part.clean_labels.numpy().data):
                    total.update(content)
        return total.hexdigest()


def image_set(images_NCHW: Tensor, labels: Tensor, classes: tuple[str, ...]) -> ImageSet:
    """An `ImageSet` without noise, checked.

    Raises:
        InputError: Where there are no images, a label is out of range, or a shape or dtype is not as `ImageSet` says.
    """
    if images_NCHW.dtype != torch.uint8 or images_NCHW.ndim != 4:
        raise InputError(f"images must be uint8 (N, C, H, W), not {images_NCHW.dtype} {tuple(images_NCHW.shape)}")
    if labels.ndim != 1 or len(labels) != len(images_NCHW) or len(labels) == 0:
        raise InputError(
            f"found {len(images_NCHW)} images and labels of shape {tuple(labels.shape)}; need one for each"
        )
    if len(classes) < 2:
        raise InputError(f"need at least 2 classes, found {len(classes)}: {', '.join(classes)}")
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(wrong):
        index = int(wrong[0])
        raise InputError(f"example {index} has label {int(labels[index])}; classes are 0 to {len(classes) - 1}")
    labels = labels.long()
    return ImageSet(images_NCHW, labels, classes, labels)


def hold_out(splits: Splits, fraction: float, *, noisy: bool = False) -> Splits:
    """Move a random `fraction` of the training set, in [0, 1), to the validation set.

    The same examples for every seed of a run, so that seeds and rho are compared on one held-out set. Their labels are
    the clean ones, or where `noisy` is set those that the training set has.

    Raises:
        InputError: Where a part would be empty.
    """
    if fraction == 0:
        return splits
    num_held_out = round(fraction * len(splits.train))
    if not 0 < num_held_out < len(splits.train):
        raise InputError(f"data.val_fraction={fraction} of {len(splits.train)} images leaves one part empty")
    order = torch.randperm(len(splits.train), generator=make_generator(0, "held-out split"))
    held_out, kept = order[:num_held_out].sort().values, order[num_held_out:].sort().values
    apart = splits.train.subset(held_out)
    validation = apart if noisy else apart.relabelled(apart.clean_labels)
    return replace(splits, train=splits.train.subset(kept), validation=validation)


def subsample(splits: Splits, fraction: float) -> Splits:
    """Keep a random `fraction` of the training set, in (0, 1]; a larger part holds the smaller.

    The same examples for every seed of a run, in their order.

    Raises:
        InputError: Where none is left.
    """
    if fraction == 1:
        return splits
    num_kept = round(fraction * len(splits.train))
    if num_kept == 0:
        raise InputError(f"data.train_fraction={fraction} of {len(splits.train)} images leaves none")
    order = torch.randperm(len(splits.train), generator=make_generator(0, "part of the training set"))
    return replace(splits, train=splits.train.subset(order[:num_kept].sort().values))
