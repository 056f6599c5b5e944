"""Image folders with one folder per class: decoded once into memory, or read from disk in every epoch."""

import logging
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_runner.config.data import ImageFolderConfig
from sam_runner.data.datasets.folder_index import find_layout_once
from sam_runner.data.datasets.folder_layout import Layout, Part, describe_suffixes
from sam_runner.data.image_sets import ImageFiles, Images, UnreadImages, group_by_class
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
MAX_AUTO_BYTES = 2 << 30  # pixels kept in memory with storage=auto


def image_folder(
    *,
    root: str,
    image_size: int | None = None,
    eval_crop_ratio: float = 1.0,
    storage: str = "auto",
    test_fraction: float = ImageFolderConfig.test_fraction,
    num_workers: int | None = None,
    cache: bool | str = False,
) -> Splits:
    """Find the images of a folder with one folder of images per class.

    The layout is ``root/train/<class>/*`` beside ``root/test/<class>/*`` or ``root/val/<class>/*``, or
    ``root/<class>/*`` or ``root/train/<class>/*`` alone; `find_layout` describes names and files. A val folder beside a
    test folder is the validation set. Without a test or val folder a fixed random `test_fraction` of each class is the
    test set; if the classes are too small for that, of all images together. All images are converted to RGB.

    Args:
        root: The folder.
        image_size: Side in pixels to which the centre crop of each image is resized; None keeps the images unchanged,
            which must then all have one size.
        eval_crop_ratio: Side of the centre crop as a fraction of the shorter side, in (0, 1].
        storage: "memory" decodes the images once and keeps them; "disk" decodes them in every epoch and needs
            `image_size`; "auto" is "memory" up to `MAX_AUTO_BYTES` of pixels.
        test_fraction: Fraction of each class for testing, in (0, 1), if there is no test folder.
        num_workers: Number of threads that decode into memory; None: one per core. Small files are decoded by one.
        cache: Value of ``data.cache``: where decoded images and the list of the files are kept.

    Returns:
        The sets. Images that are to be in memory are decoded by `Splits.read`, so that a run reads only those it uses.

    Raises:
        InputError: If the folder or its images are missing, or train and test classes differ.
    """
    if image_size is None and eval_crop_ratio != 1:
        raise InputError(
            f"data.eval_crop_ratio={eval_crop_ratio:g} has no effect without data.image_size\n  set data.image_size"
        )
    base = os.path.expanduser(root).rstrip("/") or "/"
    layout = find_layout_once(base, cache)
    _log_layout(base, layout, test_fraction)
    on_disk = _is_on_disk(storage, sum(len(part.paths) for part in layout.parts), image_size)

    def make_images(part: Part) -> Images:
        labels = torch.from_numpy(np.array(part.labels, np.int64))  # faster than from a list
        files = Path(base), tuple(part.paths), labels, layout.classes, labels, image_size or 0, eval_crop_ratio, cache
        if on_disk:
            return ImageFiles(*files)
        return UnreadImages(*files, num_workers=count_usable_cores() if num_workers is None else num_workers)

    images = make_images(layout.train)
    if layout.test is None:
        return _split_test_set(images, test_fraction)
    validation = None if layout.validation is None else make_images(layout.validation)
    return Splits(train=images, test=make_images(layout.test), validation=validation)


def _is_on_disk(storage: str, num_images: int, image_size: int | None) -> bool:
    """Return whether the images stay on disk; raises InputError if they cannot."""
    if storage == "auto" and image_size is not None:
        return num_images * 3 * image_size**2 > MAX_AUTO_BYTES
    if storage == "disk" and image_size is None:
        raise InputError("data.storage=disk needs one size for all images\n  set data.image_size")
    return storage == "disk"


def _log_layout(base: str, layout: Layout, test_fraction: float) -> None:
    """Log the folder of each split, the suffixes if there are several, and the files that are not read."""
    if layout.test is None:
        log.info("%s has no test or val folder: %g of its images are used for testing", base, test_fraction)
    else:
        parts = {"train": layout.train, "validation": layout.validation, "test": layout.test}
        folders = [f"{name} set {part.folder}" for name, part in parts.items() if part is not None]
        log.info("%s", ", ".join(folders))
    if layout.test is not None:
        warn_of_test_fraction(test_fraction, layout.test.folder)
    if len(layout.suffixes) > 1:
        log.info("%s: images read: %s", base, describe_suffixes(layout.suffixes))
    if layout.left_out.counts:
        log.warning("%s: not read: %s", base, layout.left_out)


def warn_of_test_fraction(test_fraction: float, test_set: str) -> None:
    """Log that a fraction which differs from the default has no effect, since there is a test set."""
    if test_fraction != ImageFolderConfig.test_fraction:
        log.warning("data.test_fraction=%g has no effect: the test set is %s", test_fraction, test_set)


def _split_test_set(images: Images, test_fraction: float) -> Splits:
    test, train = _split_each_class(images.labels, test_fraction)
    if not len(test) or not len(train):
        raise InputError(
            f"data.test_fraction={test_fraction} of {len(images)} images leaves one part empty\n"
            f"  use a {'smaller' if len(test) else 'larger'} data.test_fraction, or more images"
        )
    return Splits(train=images.subset(train), test=images.subset(test))


def _split_each_class(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return ascending indices of a random `fraction` of each class and of the others; the same in every run."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, members in enumerate(group_by_class(labels, int(labels.max()) + 1)):
        order = torch.randperm(len(members), generator=make_generator(0, "test split", label))
        chosen[members[order[: round(fraction * len(members))]]] = True
    if not chosen.any():  # each class is too small to split
        order = torch.randperm(len(labels), generator=make_generator(0, "test split"))
        chosen[order[: round(fraction * len(labels))]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
