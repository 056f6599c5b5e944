"""Image sets held in memory as one uint8 tensor.

A data set is a function that returns `Splits`; its arguments are the keys of its file in conf/data. To add one, write
the function, the file and a test.
"""

import csv
import gzip
import hashlib
import importlib.util
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_runner.errors import InputError
from sam_runner.seeding import generator


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


@dataclass(frozen=True)
class Splits:
    """Training, held-out and test sets; `validation` is None where nothing is held out."""

    train: ImageSet
    test: ImageSet
    validation: ImageSet | None = None

    def digest(self) -> str:
        """Hex sha256 over shapes, classes, images and labels: what a result depends on beside the settings."""
        total = hashlib.sha256()
        for part in (self.train, self.test, self.validation):
            if part is not None:
                total.update(repr((tuple(part.images_NCHW.shape), part.classes)).encode())
                for tensor in (part.images_NCHW, part.labels, part.clean_labels):
                    total.update(tensor.contiguous().numpy().data)
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


def hold_out(splits: Splits, fraction: float) -> Splits:
    """Move a random `fraction` of the training set, in [0, 1), to the validation set.

    The same examples for every seed of a run, so that seeds and rho are compared on one held-out set.

    Raises:
        InputError: Where a part would be empty.
    """
    if fraction == 0:
        return splits
    num_held_out = round(fraction * len(splits.train))
    if not 0 < num_held_out < len(splits.train):
        raise InputError(f"data.val_fraction={fraction} of {len(splits.train)} images leaves one part empty")
    order = torch.randperm(len(splits.train), generator=generator(0, "held-out split"))
    held_out, kept = order[:num_held_out].sort().values, order[num_held_out:].sort().values
    return replace(splits, train=splits.train.subset(kept), validation=splits.train.subset(held_out))


def digits() -> Splits:
    """scikit-learn's 1,797 real 8x8 handwritten digits (UCI Optical Recognition of Handwritten Digits, test part).

    Every fifth image of each class is for testing: 1,442 to train on, 355 to test. The 17 grey levels are spread over 0
    to 255.
    """
    package = importlib.util.find_spec("sklearn")  # found, not imported: that takes 1.5 s and SciPy
    if package is None or package.origin is None:
        raise InputError("data=digits needs scikit-learn: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as lines:
        table = torch.tensor([[int(float(cell)) for cell in row] for row in csv.reader(lines)])
    images = (table[:, :64] * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64]
    position_in_class = torch.zeros_like(labels)
    for label in range(10):
        members = labels == label
        position_in_class[members] = torch.arange(int(members.sum()))
    is_test = position_in_class % 5 == 4
    classes = tuple(str(digit) for digit in range(10))
    return Splits(
        train=image_set(images[~is_test], labels[~is_test], classes),
        test=image_set(images[is_test], labels[is_test], classes),
    )


def synthetic(
    *, num_train: int, num_test: int, num_classes: int, channels: int, image_size: int, data_seed: int = 0
) -> Splits:
    """Random images that can be learnt, for dry runs and tests: a 4x4 pattern per class, enlarged, under uniform noise.

    Args:
        num_train: Training images, at least 1.
        num_test: Test images, at least 1.
        num_classes: C, at least 2.
        channels: Channels of an image.
        image_size: Height and width in pixels, at least 4.
        data_seed: Seed of the images, apart from the run's.
    """
    draws = generator(data_seed, "synthetic images")
    patterns = torch.rand(num_classes, channels, 4, 4, generator=draws)
    rows = torch.arange(image_size) * 4 // image_size
    large = patterns[:, :, rows][:, :, :, rows]
    classes = tuple(f"class {label}" for label in range(num_classes))

    def draw(count: int) -> ImageSet:
        labels = torch.randint(num_classes, (count,), generator=draws)
        noise = torch.rand(count, channels, image_size, image_size, generator=draws)
        return image_set(((large[labels] + noise) * 127.5).to(torch.uint8), labels, classes)

    return Splits(train=draw(num_train), test=draw(num_test))


FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion_mnist(*, root: str, download: bool = False) -> Splits:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 + 10,000 grey 28x28 images of clothing, ten classes.

    Args:
        root: Folder with the four ``*-ubyte`` or ``*-ubyte.gz`` files, or one that has them in ``fashion-mnist``
            (Debian's package dataset-fashion-mnist) or in ``FashionMNIST/raw`` (torchvision).
        download: Fetch them with torchvision where they are not found.
    """
    folder = _find_fashion(Path(os.path.expanduser(root)))
    if folder is None and download:
        from torchvision.datasets import FashionMNIST  # imported here: it takes seconds

        try:
            FashionMNIST(str(Path(os.path.expanduser(root))), download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"Fashion-MNIST could not be downloaded to {root}: {error}") from error
        folder = _find_fashion(Path(os.path.expanduser(root)))
    if folder is None:
        raise InputError(
            f"Fashion-MNIST is not in data.root={root}\n"
            "  looked for: train-images-idx3-ubyte(.gz) there, in fashion-mnist/ and in FashionMNIST/raw/\n"
            "  to get it:  apt-get install dataset-fashion-mnist, then data.root=/usr/share/datasets;\n"
            "              or add data.download=true"
        )
    parts = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = _read_idx(folder, f"{name}-images-idx3-ubyte"), _read_idx(folder, f"{name}-labels-idx1-ubyte")
        try:
            parts[split] = image_set(images.unsqueeze(1), labels, FASHION_CLASSES)
        except InputError as error:
            raise InputError(f"{folder}/{name}-*: {error}") from error
    return Splits(train=parts["train"], test=parts["test"])


def _find_fashion(root: Path) -> Path | None:
    for folder in (root, root / "fashion-mnist", root / "FashionMNIST" / "raw"):
        if any((folder / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
            return folder
    return None


def _read_idx(folder: Path, name: str) -> Tensor:
    """A tensor from an IDX file of bytes (LeCun's MNIST format): 0, 0, 8, ndim, big-endian int32 sizes, the bytes."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        content = path.read_bytes() if path == plain else gzip.decompress(path.read_bytes())
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("not an IDX file of unsigned bytes")
        ndim = content[3]
        shape = np.frombuffer(content, ">i4", ndim, offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(tuple(shape))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}\n  it may be damaged; get it again") from error
    return torch.from_numpy(values.copy())
