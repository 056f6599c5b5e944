"""Build the image sets of a run, and check that the settings fit them."""

import json
from dataclasses import fields
from functools import lru_cache, partial

from sam_runner.config.data import AugmentConfig, DataConfig, NoiseConfig
from sam_runner.config.experiment import EarlyStoppingConfig, ExperimentConfig
from sam_runner.config.instantiate import call_target, instantiate, locate
from sam_runner.config.rules.data import NO_HELD_OUT_IMAGES
from sam_runner.data.image_sets import ArraySet, ImageFiles, Images
from sam_runner.data.noise import noise_needs
from sam_runner.data.splits import Splits, prepare_splits
from sam_runner.utils.errors import InputError


@lru_cache(maxsize=1)
def _read_data(target: str, arguments: str) -> Splits:
    """Return what the function `target` returns for `arguments`, a JSON object.

    The last result is cached, because the jobs of a sweep usually share a data set.
    """
    splits = call_target(target, json.loads(arguments), "data")
    if not isinstance(splits, Splits):
        raise InputError(
            f"data ({target}) returns a {type(splits).__name__}\n"
            "  return from_dataset(train, test, classes) of sam_runner (docs/own_data.md)"
        )
    return splits


def build_data(data: DataConfig, noise: NoiseConfig, seed: int, whole: Splits | None = None) -> Splits:
    """Return the training set with its label noise, the held-out set and the test set.

    Args:
        data: Settings of the data set.
        noise: Settings of the label noise.
        seed: Seed of the label noise.
        whole: The sets before any image is held out. None: the function of the data set reads them.

    Raises:
        InputError: If the data cannot be read, or the settings do not fit them.
    """
    return prepare_splits(
        whole or _read_data(data.target, json.dumps(data.arguments(), sort_keys=True)),
        partial(instantiate, noise, "noise"),
        needs=noise_needs(locate(noise.target)),
        seed=seed,
        val_fraction=data.val_fraction,
        train_fraction=data.train_fraction,
        val_labels=data.val_labels,
    )


def require_fitting_data(config: ExperimentConfig, train: Images) -> None:
    """Require that the settings fit the training set.

    Raises:
        InputError: If an augmentation does not fit the images, or incomplete batches are left out and there is no
            complete one.
    """
    augment: AugmentConfig = config.augment
    if config.data.drop_last and len(train) < config.batch_size:
        raise InputError(
            f"batch_size={config.batch_size} is larger than the training set of {len(train)} images, and "
            "data.drop_last=true leaves out incomplete batches\n  use a smaller batch_size or data.drop_last=false"
        )
    if isinstance(train, ArraySet):
        _require_augmentable(augment, train)
    side = min(train.shape[1:], default=1)
    if augment.crop_scale_min is not None and not isinstance(train, ImageFiles):
        raise InputError(
            "augment.crop_scale_min needs image files, but the images are in memory\n  set data.storage=disk"
        )
    if augment.pad_mode == "reflect" and augment.pad >= side:
        raise InputError(
            f"augment.pad={augment.pad} is too large for augment.pad_mode=reflect on images of {side} pixels\n"
            f"  accepted: at most {side - 1}, or augment.pad_mode=zero"
        )
    if augment.cutout > side:
        raise InputError(
            f"augment.cutout={augment.cutout} is larger than images of {side} pixels\n  accepted: at most {side}"
        )


def require_held_out_images(config: ExperimentConfig, splits: Splits) -> None:
    """Require the held-out images and the number of classes that early stopping needs.

    Raises:
        InputError: If early_stopping.patience or another early_stopping.metric than the default is set and no images
            are held out, if ``data.val_labels=noisy`` and no images are held out, or if a top-5 metric is chosen for at
            most five classes.
    """
    if splits.validation is None and config.data.val_labels == "noisy":
        raise InputError(NO_HELD_OUT_IMAGES)
    patience, metric = config.early_stopping.patience, config.early_stopping.metric
    is_chosen = metric != EarlyStoppingConfig.metric
    if splits.validation is None and (patience is not None or is_chosen):
        name = f"early_stopping.metric={metric}" if is_chosen else "early_stopping.patience"
        raise InputError(f"{name} needs held-out images to choose the best epoch\n  add data.val_fraction=0.1")
    if metric.endswith("/accuracy_top5") and len(splits.train.classes) <= 5:
        raise InputError(
            f"early_stopping.metric={metric} needs more than five classes, the data have {len(splits.train.classes)}\n"
            "  use validation/accuracy or validation/nll"
        )


def _require_augmentable(augment: AugmentConfig, train: ArraySet) -> None:
    """Refuse augmentations that cannot be applied to the inputs.

    Inputs of floats accept mixup. Floats of shape (C, H, W) also accept crop, flip, cutout, erasing and CutMix.
    """
    accepted = {"mixup"} if train.inputs.dtype.is_floating_point else set()
    if accepted and len(train.shape) == 3:
        accepted |= {"pad", "pad_mode", "flip", "cutout", "cutout_per_batch", "erasing", "cutmix"}
    for entry in fields(augment):
        value = getattr(augment, entry.name)
        if value != entry.default and entry.name not in accepted:
            kind = str(train.inputs.dtype).removeprefix("torch.")
            raise InputError(
                f"augment.{entry.name}={value} cannot be applied to inputs of shape {train.shape}, {kind}\n"
                f"  accepted: {', '.join(f'augment.{name}' for name in sorted(accepted)) or 'augment=none'}"
            )
