"""Rules of data, label noise and augmentation."""

from typing import TYPE_CHECKING

from sam_runner.config.data import (
    ArchiveConfig,
    DataConfig,
    HuggingFaceConfig,
    ImageFolderConfig,
    ImageListConfig,
    LabelFileConfig,
)
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig

NO_HELD_OUT_IMAGES = "data.val_labels=noisy has no effect without held-out images\n  add data.val_fraction=0.1"


def check_image_files(config: "ExperimentConfig", _: set[str]) -> None:
    """Refuse crops while decoding for data that have no image files."""
    has_files = _is_own(config.data) or isinstance(config.data, ImageFolderConfig | ImageListConfig)
    if config.augment.crop_scale_min is not None and not has_files:
        raise InputError(
            "augment.crop_scale_min needs image files: it crops them while they are decoded\n"
            "  use data=image_folder data.storage=disk, or another augment than inception"
        )


def check_normalisation(config: "ExperimentConfig", _: set[str]) -> None:
    """Require the weights whose mean and std are asked for."""
    if config.data.normalisation == "weights" and config.model.weights is None:
        raise InputError(
            "data.normalisation=weights needs model.weights\n  add model.weights, or use data.normalisation=set"
        )


def check_download(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse an address without a download."""
    if "data.url" in typed and isinstance(config.data, ArchiveConfig) and not config.data.download:
        raise InputError("data.url has no effect with data.download=false\n  add data.download=true")


def check_held_out_labels(config: "ExperimentConfig", _: set[str]) -> None:
    """Refuse noisy held-out labels where there are no held-out images, or no noise for them."""
    if config.data.val_labels != "noisy":
        return
    own_data = _is_own(config.data)
    may_have_validation = own_data or isinstance(config.data, ImageFolderConfig | ImageListConfig | HuggingFaceConfig)
    if not config.data.val_fraction and not may_have_validation:  # for the others see `require_held_out_images`
        raise InputError(NO_HELD_OUT_IMAGES)
    has_own_noise = config.data.val_fraction and (own_data or isinstance(config.data, ImageListConfig))
    if config.noise.target == "sam_runner.data.noise.none" and not has_own_noise:
        raise InputError(
            "data.val_labels=noisy has no effect with noise=none\n  choose a noise, or use data.val_labels=clean"
        )
    if isinstance(config.noise, LabelFileConfig):
        raise InputError(
            "data.val_labels=noisy: the file of noise=relabelled has no labels for held-out images\n"
            "  use data.val_labels=clean"
        )


def check_augment(config: "ExperimentConfig", typed: set[str]) -> None:
    """Refuse augmentation that has no effect or excludes another one."""
    augment = config.augment
    if "augment.pad_mode" in typed and augment.pad == 0:
        raise InputError("augment.pad_mode has no effect with augment.pad=0\n  give augment.pad too")
    if "augment.cutout_per_batch" in typed and augment.cutout == 0:
        raise InputError("augment.cutout_per_batch has no effect with augment.cutout=0\n  give augment.cutout too")
    for name in ("augment.num_ops", "augment.magnitude"):
        if name in typed and augment.policy != "randaugment":
            raise InputError(f"{name} has no effect without RandAugment\n  use augment=randaugment")
    if augment.mixup is not None and augment.cutmix is not None:
        raise InputError("augment.mixup and augment.cutmix exclude each other\n  set one of them to null")


def _is_own(data: DataConfig) -> bool:
    """Return whether a function of the user makes the data."""
    return type(data) is DataConfig and data.target not in DataConfig.targets
