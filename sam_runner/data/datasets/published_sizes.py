"""Published numbers of images and classes of the data sets, with which a run is planned before its data are there."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sam_runner.config.data import DataConfig, ImageFolderConfig, SvhnConfig
from sam_runner.config.keys import REQUIRED
from sam_runner.data.image_sets import ImageFiles, Images
from sam_runner.data.splits import Splits


@dataclass(frozen=True)
class PublishedSize:
    """The size of a data set.

    Attributes:
        title: Name of the set.
        train: Number of training images.
        test: Number of images of the set that is used for testing.
        classes: Number of classes.
        source: Paper of the set. The comment at each set says where its numbers are published.
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
    # cs.toronto.edu/~kriz/cifar.html: 50,000 and 10,000 images of 32x32, both sets; 10 and 100 classes
    "cifar10": PublishedSize("CIFAR-10", 50_000, 10_000, 10, "Krizhevsky (2009)", side=32),
    "cifar100": PublishedSize("CIFAR-100", 50_000, 10_000, 100, "Krizhevsky (2009)", side=32),
    # TFDS svhn_cropped 3.1.0: train 73,257, test 26,032, extra 531,131; 10 classes, 32x32
    "svhn": PublishedSize("SVHN", 73_257, 26_032, 10, "Netzer et al. (2011)", side=32),
    "svhn_extra": PublishedSize("SVHN with extra", 73_257 + 531_131, 26_032, 10, "Netzer et al. (2011)", side=32),
    # keras.io/api/datasets/fashion_mnist: 60,000 and 10,000 grey images of 28x28, 10 classes
    "fashion_mnist": PublishedSize("Fashion-MNIST", 60_000, 10_000, 10, "Xiao et al. (2017)", channels=1, side=28),
    # tensorflow/models, adv_imagenet_models/imagenet.py: train 1,281,167, validation (used for testing) 50,000
    "imagenet": PublishedSize("ImageNet", 1_281_167, 50_000, 1_000, "Russakovsky et al. (IJCV 2015)"),
    # The sets of the paper's Table 3 for fine-tuning. A validation split is part of the training images.
    # torchvision FGVCAircraft: 10,000 images, 100 variants; mmpretrain FGVCAircraft: trainval 6,667, test 3,333
    "aircraft": PublishedSize("FGVC Aircraft", 6_667, 3_333, 100, "Maji et al. (2013)"),
    # readme of Birdsnap 1.1: 49,829 images of 500 species, test_images.txt lists 2,443; many links are dead now
    "birdsnap": PublishedSize("Birdsnap", 49_829 - 2_443, 2_443, 500, "Berg et al. (CVPR 2014)"),
    # torchvision StanfordCars, TFDS cars196: train 8,144, test 8,041; 196 classes
    "cars": PublishedSize("Stanford Cars", 8_144, 8_041, 196, "Krause et al. (2013)"),
    # TFDS oxford_flowers102 2.1.1: train 1,020, validation 1,020, test 6,149; 102 classes
    "flowers": PublishedSize("Oxford 102 Flowers", 1_020 + 1_020, 6_149, 102, "Nilsback and Zisserman (2008)"),
    # torchvision Food101: 101 classes with 750 training and 250 test images each
    "food101": PublishedSize("Food-101", 101 * 750, 101 * 250, 101, "Bossard et al. (ECCV 2014)"),
    # TFDS oxford_iiit_pet 4.0.0: train 3,680, test 3,669; 37 classes
    "pets": PublishedSize("Oxford-IIIT Pets", 3_680, 3_669, 37, "Parkhi et al. (CVPR 2012)"),
}


def find_published_size(data: DataConfig, paper: str | None) -> PublishedSize | None:
    """Return the size of the set that a run is for, None if it is not known.

    For an image folder it is the size of the set in the paper's row (`paper`). If there is neither a row nor a folder,
    it is that of ImageNet with the settings of data=imagenet, otherwise that of Flowers, as an example of a set for
    fine-tuning.
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

    def make(split: str, count: int) -> Images:
        labels = torch.arange(count) % size.classes
        side = image_size or size.side or 224
        paths = tuple(map(str, range(count)))  # different ones: files with the same path count as the same image
        return UnavailableImages(Path(split), paths, labels, classes, labels, side, channels=size.channels)

    return Splits(train=make("train", size.train), test=make("test", size.test))
