"""The typed keys of the groups data, noise and augment; see `sam_runner.config.schema`."""

from dataclasses import dataclass
from enum import Enum

Storage = Enum("Storage", ["auto", "memory", "disk"])
ValLabels = Enum("ValLabels", ["clean", "noisy"])
HumanSet = Enum("HumanSet", ["aggre", "random1", "random2", "random3", "worst", "noisy"])
PadMode = Enum("PadMode", ["reflect", "zero"])
Policy = Enum("Policy", ["none", "cifar10", "svhn", "imagenet", "randaugment", "trivialaugment"])


@dataclass
class Target:
    """Anything built from a function or class that `_target_` names."""

    _target_: str


@dataclass
class Data(Target):
    """Keys of every data set."""

    train_fraction: float
    val_fraction: float
    val_labels: ValLabels
    drop_last: bool


@dataclass
class Synthetic(Data):
    """Keys of data=synthetic."""

    num_train: int
    num_test: int
    num_classes: int
    channels: int
    image_size: int
    data_seed: int


@dataclass
class Published(Data):
    """Keys of the sets that are read as they were published: data=cifar10, cifar100, fashion_mnist."""

    root: str
    download: bool
    url: str


@dataclass
class Svhn(Published):
    """Keys of data=svhn."""

    extra: bool


@dataclass
class ImageFolder(Data):
    """Keys of data=image_folder and data=imagenet."""

    root: str
    image_size: int | None
    eval_crop_ratio: float
    storage: Storage
    test_fraction: float
    num_workers: int | None


@dataclass
class Symmetric(Target):
    """Keys of noise=symmetric."""

    rate: float
    include_true_class: bool


@dataclass
class Rated(Target):
    """Keys of noise=asymmetric, noise=pair and noise=instance."""

    rate: float


@dataclass
class Human(Target):
    """Keys of noise=human."""

    file: str
    set: HumanSet


@dataclass
class Relabelled(Target):
    """Keys of noise=relabelled."""

    file: str


@dataclass
class Augment:
    """Keys of the group augment; see `sam_runner.data.augment.augmentation.Augmentation`."""

    pad: int
    pad_mode: PadMode
    flip: bool
    cutout: int
    cutout_per_batch: bool
    policy: Policy
    num_ops: int
    magnitude: int
    erasing: float
    mixup: float | None
    cutmix: float | None
    crop_scale_min: float | None
