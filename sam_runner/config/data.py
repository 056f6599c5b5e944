"""Settings of the groups ``data``, ``noise`` and ``augment``, which describe the images and their labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sam_runner.config.component import Component
from sam_runner.config.keys import (
    AT_LEAST_ONE,
    BELOW_ONE,
    CLOSED_UNIT,
    NOT_NEGATIVE,
    OPEN_UNIT,
    POSITIVE,
    UP_TO_ONE,
    Range,
    key,
)


@dataclass(frozen=True)
class DataConfig(Component):
    """Settings of every data set. The function of your own data set gets all further keys."""

    schema: ClassVar[str] = "data/digits"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.datasets.digits.digits",)
    train_fraction: float = key(
        "fraction of the training images to train on, after val_fraction is held out; the same images for every seed",
        1.0,
        range=UP_TO_ONE,
        argument=False,
    )
    val_fraction: float = key(
        "fraction of the training images to hold out for validation; the same images for every seed",
        0.0,
        range=BELOW_ONE,
        argument=False,
    )
    val_labels: Literal["clean", "noisy"] = key(
        "labels of the held-out images: clean, or with the label noise of the training set", "clean", argument=False
    )
    normalisation: Literal["auto", "set", "imagenet", "weights"] = key(
        "where the mean and std to normalise images come from; set: the training set; imagenet: ImageNet; weights: the"
        " images that model.weights were trained on; auto: weights if their mean and std are known, else set",
        "auto",
        argument=False,
    )
    drop_last: bool = key("true: leave out the last batch of an epoch if it is smaller", True, argument=False)
    own_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_decoding_workers(self) -> int | None:
        """Value of the setting ``num_workers``, or None: the number is chosen from the number of cores."""
        return getattr(self, "num_workers", None)


@dataclass(frozen=True)
class SyntheticConfig(DataConfig):
    """Settings of data=synthetic."""

    schema: ClassVar[str] = "data/synthetic"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.datasets.synthetic.synthetic",)
    num_train: int = key("number of training images", 512, range=AT_LEAST_ONE)
    num_test: int = key("number of test images", 128, range=AT_LEAST_ONE)
    num_classes: int = key("number of classes", 10, range=Range(2))
    channels: int = key("channels of each image", 3, range=AT_LEAST_ONE)
    image_size: int = key("height and width of each image in pixels", 32, range=Range(4))
    data_seed: int = key("seed of the images", 0, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class ArchiveConfig(DataConfig):
    """Settings of data=cifar10, data=cifar100, data=fashion_mnist and data=svhn."""

    schema: ClassVar[str] = "data/archive"
    targets: ClassVar[tuple[str, ...]] = (
        "sam_runner.data.datasets.cifar.cifar10",
        "sam_runner.data.datasets.cifar.cifar100",
        "sam_runner.data.datasets.fashion_mnist.fashion_mnist",
    )
    root: str = key("folder of the files", "data", on_resume="", in_reports=False, path=True)
    download: bool = key("true: download missing files into the folder", False, effect="none", in_reports=False)
    url: str = key(
        "address of the folder to download files from; each option has the published address",
        effect="none",
        in_reports=False,
    )


@dataclass(frozen=True)
class SvhnConfig(ArchiveConfig):
    """Further setting of data=svhn."""

    schema: ClassVar[str] = "data/svhn"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.datasets.svhn.svhn",)
    extra: bool = key(
        "true: also train on the 531,131 images of extra_32x32.mat; the training set then has 1.9 GB", False
    )


@dataclass(frozen=True)
class ImageFolderConfig(DataConfig):
    """Settings of data=image_folder and data=imagenet."""

    schema: ClassVar[str] = "data/image_folder"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.datasets.image_folder.image_folder",)
    root: str = key(
        "folder of the images: <root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg", on_resume="", path=True
    )
    image_size: int | None = key(
        "side in pixels to which the centre crop of each image is resized; null: use images of one size unchanged"
        " (data=imagenet: 224)",
        None,
        range=Range(4),
    )
    eval_crop_ratio: float = key(
        "side of the centre crop divided by the image's shorter side; data=imagenet: 0.875",
        1.0,
        range=UP_TO_ONE,
    )
    storage: Literal["auto", "memory", "disk"] = key(
        "memory: decode once; disk: decode in every epoch; auto: disk if image_size is set and all images together have"
        " more than 2 GiB of pixels, else memory (data=imagenet: disk)",
        "auto",
    )
    test_fraction: float = key(
        "fraction of each class that becomes the test set if there is no folder test or val", 0.2, range=OPEN_UNIT
    )
    cache: Literal[True, False] | str = key(
        "folder that keeps decoded images and the list of the files for later runs; true: ~/.cache/sam_runner",
        False,
        effect="none",
        in_reports=False,
        path=True,
    )
    num_workers: int | None = key(
        "threads that decode into memory, or processes that decode from disk or apply augment.policy; null: chosen from"
        " the number of cores",
        None,
        range=NOT_NEGATIVE,
        effect="none",
        in_reports=False,
    )


@dataclass(frozen=True)
class ImageListConfig(DataConfig):
    """Settings of data=image_list."""

    schema: ClassVar[str] = "data/image_list"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.datasets.image_list.image_list",)
    file: str = key(
        "CSV file with the columns path and label; optional: split and clean_label. Paths are relative to its folder",
        on_resume="",
        path=True,
    )
    image_size: int | None = key(
        "side in pixels to which the centre crop of each image is resized; null: use images of one size unchanged",
        None,
        range=Range(4),
    )
    storage: Literal["memory", "disk"] = key("memory: decode once; disk: decode in every epoch", "memory")
    test_fraction: float = key(
        "fraction of each class that becomes the test set if the file names neither test nor validation images",
        0.2,
        range=OPEN_UNIT,
    )
    cache: Literal[True, False] | str = key(
        "folder that keeps decoded images for later runs; true: ~/.cache/sam_runner",
        False,
        effect="none",
        in_reports=False,
        path=True,
    )
    num_workers: int | None = key(
        "processes that decode from disk or apply augment.policy; null: chosen from the number of cores",
        None,
        range=NOT_NEGATIVE,
        effect="none",
        in_reports=False,
        argument=False,
    )


@dataclass(frozen=True)
class HuggingFaceConfig(DataConfig):
    """Settings of data=hugging_face."""

    schema: ClassVar[str] = "data/hugging_face"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.datasets.hugging_face.hugging_face",)
    root: str = key("folder that save_to_disk of datasets wrote, or folder of parquet files", on_resume="", path=True)
    inputs: str | None = key(
        "column of the inputs; null: the column of images, else the only column besides the labels", None
    )
    labels: str | None = key(
        "column of the labels; null: the column of type ClassLabel, else the column label or labels", None
    )
    image_size: int | None = key(
        "side in pixels to which the centre crop of each image is resized; null: use images of one size unchanged",
        None,
        range=Range(4),
    )
    test_fraction: float = key(
        "fraction of each class that becomes the test set if there is no split test or validation", 0.2, range=OPEN_UNIT
    )


@dataclass(frozen=True)
class NoiseConfig(Component):
    """Settings of every noise model. The function of your own noise model gets all further keys."""

    schema: ClassVar[str] = "noise/none"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.noise.none",)
    own_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RateNoiseConfig(NoiseConfig):
    """Settings of noise=asymmetric and noise=instance."""

    schema: ClassVar[str] = "noise/rate"
    targets: ClassVar[tuple[str, ...]] = (
        "sam_runner.data.noise.asymmetric",
        "sam_runner.data.noise.instance",
    )
    rate: float = key(
        "asymmetric: fraction of the labels that are replaced in each class that has a similar class; instance: mean"
        " fraction of the labels that are replaced",
        0.4,
        range=CLOSED_UNIT,
    )


@dataclass(frozen=True)
class PairNoiseConfig(RateNoiseConfig):
    """Settings of noise=pair."""

    schema: ClassVar[str] = "noise/pair"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.noise.pair",)
    rate: float = key("fraction of the labels of each class that are replaced", 0.45, range=CLOSED_UNIT)


@dataclass(frozen=True)
class SymmetricNoiseConfig(RateNoiseConfig):
    """Settings of noise=symmetric."""

    schema: ClassVar[str] = "noise/symmetric"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.noise.symmetric",)
    rate: float = key("fraction of the training labels that are replaced", 0.2, range=CLOSED_UNIT)
    include_true_class: bool = key(
        "true: draw the new label from all classes; false: from all but the true class", False
    )


@dataclass(frozen=True)
class LabelFileConfig(NoiseConfig):
    """Settings of noise=relabelled."""

    schema: ClassVar[str] = "noise/label_file"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.noise.relabelled",)
    file: str = key(
        ".npy or .pt file with the number of the class (0, 1, ...) of each image that is trained on, in the order of"
        " the data set",
        on_resume="",
        in_reports=False,
        path=True,
    )


@dataclass(frozen=True)
class HumanNoiseConfig(NoiseConfig):
    """Settings of noise=human."""

    schema: ClassVar[str] = "noise/human"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.data.noise.human",)
    file: str = key("CIFAR-10_human.pt or CIFAR-100_human.pt", on_resume="", in_reports=False, path=True)
    set: Literal["aggre", "random1", "random2", "random3", "worst", "noisy"] = key(
        "labels of the file: aggre, random1, random2, random3 or worst of CIFAR-10N; noisy of CIFAR-100N", "worst"
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the group augment: augmentation of the training images."""

    schema: ClassVar[str] = "augment"
    pad: int = key(
        "pixels added on each side before a random crop of the original size; with pad_mode=reflect fewer than the side"
        " of the images; 0: no crop",
        0,
        range=NOT_NEGATIVE,
    )
    pad_mode: Literal["reflect", "zero"] = key(
        "values of the added pixels; reflect: the image mirrored at its edge (the paper's code); zero: black",
        "reflect",
    )
    flip: bool = key("mirror left to right with probability 1/2", False)
    cutout: int = key(
        "side in pixels of a square that is set to the mean image value (DeVries and Taylor, 2017: 16 for CIFAR-10, 8"
        " for CIFAR-100), at most the side of the images; 0: none",
        0,
        range=NOT_NEGATIVE,
    )
    cutout_per_batch: bool = key("true: one position of the square for all images of a batch (the paper's code)", False)
    policy: Literal["none", "cifar10", "svhn", "imagenet", "randaugment", "trivialaugment"] = key(
        "cifar10, svhn, imagenet: AutoAugment's policy for this set; randaugment, trivialaugment: these methods", "none"
    )
    num_ops: int = key("number of RandAugment's transformations (default: torchvision's)", 2, range=AT_LEAST_ONE)
    magnitude: int = key(
        "strength of RandAugment's transformations (default: torchvision's)", 9, range=Range(0, 30, high_open=False)
    )
    erasing: float = key(
        "probability that a random rectangle is set to the mean image value (Zhong et al., 2020)",
        0.0,
        range=CLOSED_UNIT,
    )
    mixup: float | None = key("alpha of mixup (Zhang et al., 2018); null: none", None, range=POSITIVE)
    cutmix: float | None = key("alpha of CutMix (Yun et al., 2019); null: none", None, range=POSITIVE)
    crop_scale_min: float | None = key(
        "for sets on disk: smallest fraction of an image's area that a random crop covers (Szegedy et al., 2015);"
        " null: centre crop",
        None,
        range=UP_TO_ONE,
    )


DATA_SETS: tuple[type[DataConfig], ...] = (
    DataConfig,
    SyntheticConfig,
    ArchiveConfig,
    SvhnConfig,
    ImageFolderConfig,
    ImageListConfig,
    HuggingFaceConfig,
)
NOISES: tuple[type[NoiseConfig], ...] = (
    NoiseConfig,
    RateNoiseConfig,
    PairNoiseConfig,
    SymmetricNoiseConfig,
    LabelFileConfig,
    HumanNoiseConfig,
)
