"""Which keys of the groups data and augment exclude each other or have no effect; see `sam_runner.config.validation`."""

import os
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sam_runner.config.data_schema import ImageFolder, Policy
from sam_runner.utils.errors import InputError


def _disk(cfg: DictConfig, _: set[str]) -> None:
    """Keys of sets that are read from disk."""
    if cfg.augment.crop_scale_min is not None and OmegaConf.get_type(cfg.data) not in (ImageFolder, dict):
        raise InputError(
            "augment.crop_scale_min cuts parts out of image files\n"
            "  use data=image_folder data.storage=disk, or another augment than inception"
        )


def _download(cfg: DictConfig, typed: set[str]) -> None:
    if "data.url" in typed and "download" in cfg.data and not cfg.data.download:
        raise InputError("data.url has no effect with data.download=false\n  add data.download=true")


def _val_labels(cfg: DictConfig, _: set[str]) -> None:
    """Held-out labels can be noisy only where there are any, and where the noise model can be applied to them."""
    if str(cfg.data.get("val_labels", "clean")).rpartition(".")[2] != "noisy":
        return
    if not cfg.data.get("val_fraction", 0):
        raise InputError("data.val_labels=noisy has no effect without held-out images\n  add data.val_fraction=0.1")
    name = str(cfg.noise._target_).rpartition(".")[2]
    if name == "none":
        raise InputError("data.val_labels=noisy has no effect with noise=none\n  choose a noise, or leave it out")
    if name == "relabelled":
        raise InputError("data.val_labels=noisy: the file of noise=relabelled has no labels for held-out images")


def _augment(cfg: DictConfig, typed: set[str]) -> None:
    if "augment.pad_mode" in typed and cfg.augment.pad == 0:
        raise InputError("augment.pad_mode has no effect with augment.pad=0\n  give augment.pad too")
    if "augment.cutout_per_batch" in typed and cfg.augment.cutout == 0:
        raise InputError("augment.cutout_per_batch has no effect with augment.cutout=0\n  give augment.cutout too")
    for key in ("augment.num_ops", "augment.magnitude"):
        if key in typed and cfg.augment.policy != Policy.randaugment:
            raise InputError(f"{key} is of RandAugment only\n  use augment=randaugment")
    if cfg.augment.mixup is not None and cfg.augment.cutmix is not None:
        raise InputError("augment.mixup and augment.cutmix exclude each other\n  set one of them to null")


def require_files(cfg: DictConfig) -> None:
    """Refuse a folder of images or a file of labels that is not there, before torch is imported and images are read.

    Args:
        cfg: The composed, validated configuration.

    Raises:
        InputError: Which path it is.
    """
    if OmegaConf.get_type(cfg.data) is ImageFolder and not Path(os.path.expanduser(cfg.data.root)).is_dir():
        raise InputError(f"data.root={cfg.data.root} is not a folder\n  expected: <root>/train/<class>/*.jpg or alike")
    file = cfg.noise.get("file")
    if file is not None and not Path(os.path.expanduser(file)).is_file():
        raise InputError(f"noise.file={file} is not a file\n  give the path of the file of labels")


DATA_RULES: tuple[Callable[[DictConfig, set[str]], None], ...] = (_disk, _download, _val_labels, _augment)
