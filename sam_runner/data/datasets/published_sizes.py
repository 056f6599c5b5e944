"""Published numbers of images and classes of the data sets, with which a run is planned before its data are there."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sam_runner.config.data import DataConfig, ImageFolderConfig, SvhnConfig
from sam_runner.config.keys import REQUIRED
from sam_runner.data.image_sets import ImageFiles, Images
from sam_runner.data.splits import Splits

TRANSFER = "Kornblith, Shlens and Le (CVPR 2019), Table 1"


@dataclass(frozen=True)
class PublishedSize:
    """The size of a data set.

    Attributes:
        title: Name of the set.
        train: Number of training images.
        test: Number of images of the set that is used for testing.
        classes: Number of classes.
        source: Where the numbers are published.
        channels: Channels of an image.
        side: Height and width in pixels; None if the images have several sizes.
    """

    title: str
    train: int
    test: int
    classes: int
    source: str
    channels: int = 3
    side: int | None = None


SIZES = {
    "cifar10": PublishedSize("CIFAR-10", 50_000, 10_000, 10, "Krizhevsky (2009)", side=32),
    "cifar100": PublishedSize("CIFAR-100", 50_000, 10_000, 100, "Krizhevsky (2009)", side=32),
    "svhn": PublishedSize("SVHN", 73_257, 26_032, 10, "Netzer et al. (2011)", side=32),
    "svhn_extra": PublishedSize("SVHN with extra", 73_257 + 531_131, 26_032, 10, "Netzer et al. (2011)", side=32),
    "fashion_mnist": PublishedSize("Fashion-MNIST", 60_000, 10_000, 10, "Xiao et al. (2017)", channels=1, side=28),
    "imagenet": PublishedSize("ImageNet", 1_281_167, 50_000, 1_000, "Russakovsky et al. (IJCV 2015)"),
    "aircraft": PublishedSize("FGVC Aircraft", 6_667, 3_333, 100, TRANSFER),
    "birdsnap": PublishedSize("Birdsnap", 47_386, 2_443, 500, TRANSFER),
    "cars": PublishedSize("Stanford Cars", 8_144, 8_041, 196, TRANSFER),
    "flowers": PublishedSize("Oxford 102 Flowers", 2_040, 6_149, 102, TRANSFER),
    "food101": PublishedSize("Food-101", 75_750, 25_250, 101, TRANSFER),
    "pets": PublishedSize("Oxford-IIIT Pets", 3_680, 3_369, 37, TRANSFER),
}


def find_published_size(data: DataConfig, paper: str | None) -> PublishedSize | None:
    """Return the size of the set that a run is for, None if it is not known.

    An image folder is the set of the paper's row (`paper`). Without a row, and if no folder was given, it is ImageNet
    with the settings of data=imagenet, otherwise Flowers, as an example of a set for fine-tuning.
    """
    if not isinstance(data, ImageFolderConfig):
        name = data.target.rpartition(".")[2]
        return SIZES.get("svhn_extra" if isinstance(data, SvhnConfig) and data.extra else name)
    table, _, row = (paper or "").partition(".")
    if table == "table2":
        return SIZES["imagenet"]
    if table == "table3" and row in SIZES:
        return SIZES[row]
    if table != "table3" and data.root != REQUIRED:
        return None
    is_imagenet = not table and data.storage == "disk" and data.eval_crop_ratio == 0.875
    return SIZES["imagenet" if is_imagenet else "flowers"]


@dataclass(frozen=True)
class UnavailableImages(ImageFiles):
    """Images of a published number and size that are not there to be read.

    Attributes:
        channels: Channels of an image.
    """

    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size


def make_published_splits(size: PublishedSize, image_size: int | None) -> Splits:
    """Return sets of a published size; the classes have equal numbers of images.

    Args:
        size: The size.
        image_size: Value of ``data.image_size``, for a set whose images have several sizes; None: 224.
    """
    classes = tuple(f"class {label}" for label in range(size.classes))

    def make(count: int) -> Images:
        labels = torch.arange(count) % size.classes
        side = image_size or size.side or 224
        return UnavailableImages(Path(), ("",) * count, labels, classes, labels, side, channels=size.channels)

    return Splits(train=make(size.train), test=make(size.test))
