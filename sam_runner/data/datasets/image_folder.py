"""Image folders with one folder per class: decoded once into memory, or read from disk in every epoch."""

import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_runner.config.data import ImageFolderConfig
from sam_runner.data.datasets.folder_layout import Layout, Part, count_suffixes, find_layout
from sam_runner.data.decode import centre_crop_box, read_crop, read_image
from sam_runner.data.image_sets import ImageFiles, Images, make_image_set
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
SMALL_FILE_BYTES = 4096  # about 100x100 pixels; for smaller files one thread is as fast as several
IMAGES_PER_TASK = 256  # decoding one small image is cheaper than submitting it to a thread
MAX_AUTO_BYTES, MAX_BYTES = 2 << 30, 8 << 30  # pixels kept in memory with storage=auto, and with storage=memory


def image_folder(
    *,
    root: str,
    image_size: int | None = None,
    eval_crop_ratio: float = 1.0,
    storage: str = "auto",
    test_fraction: float = ImageFolderConfig.test_fraction,
    num_workers: int | None = None,
) -> Splits:
    """Read a folder with one folder of images per class.

    The layout is ``root/train/<class>/*`` beside ``root/test/<class>/*`` or ``root/val/<class>/*``, or
    ``root/<class>/*`` or ``root/train/<class>/*`` alone; `find_layout` describes names and files. A val folder beside a
    test folder is the validation set. Without a test or val folder a fixed random `test_fraction` of each class is the
    test set; if the classes are too small for that, of all images together. All images are converted to RGB.

    Args:
        root: The folder.
        image_size: Side in pixels to which the centre crop of each image is resized; None keeps the images unchanged,
            which must then all have one size.
        eval_crop_ratio: Side of the centre crop as a fraction of the shorter side, in (0, 1].
        storage: "memory" decodes all images once and keeps them; "disk" decodes them in every epoch and needs
            `image_size`; "auto" is "memory" up to `MAX_AUTO_BYTES` of pixels.
        test_fraction: Fraction of each class for testing, in (0, 1), if there is no test folder.
        num_workers: Number of threads that decode into memory; None: one per core. Small files are decoded by one.

    Raises:
        InputError: If the folder or its images are missing, train and test classes differ, image sizes differ, or an
            image cannot be decoded; the message has its path.
    """
    if image_size is None and eval_crop_ratio != 1:
        raise InputError(
            f"data.eval_crop_ratio={eval_crop_ratio:g} has no effect without data.image_size\n  set data.image_size"
        )
    base = os.path.expanduser(root).rstrip("/") or "/"
    layout = find_layout(base)
    _log_layout(base, layout, test_fraction)
    parts = [part for part in (layout.train, layout.validation, layout.test) if part is not None]
    paths = [Path(base, path) for part in parts for path in part.paths]
    if storage == "auto" and image_size is not None and len(paths) * 3 * image_size**2 > MAX_AUTO_BYTES:
        storage = "disk"
    if storage == "disk":
        if image_size is None:
            raise InputError("data.storage=disk needs one size for all images\n  set data.image_size")

        def make_images(part: Part) -> Images:
            labels = torch.tensor(part.labels)
            return ImageFiles(
                Path(base), tuple(part.paths), labels, layout.classes, labels, image_size, eval_crop_ratio
            )

    else:
        decode = partial(_decode, image_size=image_size, eval_crop_ratio=eval_crop_ratio)
        _check_memory(paths, decode)
        log.info("reading %s images into memory", f"{len(paths):,}")
        workers = count_usable_cores() if num_workers is None else num_workers

        def make_images(part: Part) -> Images:
            images = _decode_all([Path(base, path) for path in part.paths], decode, workers)
            return make_image_set(images, torch.tensor(part.labels), layout.classes, tuple(part.paths))

    images = make_images(layout.train)
    if layout.test is None:
        return _split_test_set(images, test_fraction)
    validation = None if layout.validation is None else make_images(layout.validation)
    return Splits(train=images, test=make_images(layout.test), validation=validation)


def _log_layout(base: str, layout: Layout, test_fraction: float) -> None:
    """Log the folder of each split, the suffixes if there are several, and the files that are not read."""
    if layout.test is None:
        log.info("%s has no test or val folder: %g of its images are used for testing", base, test_fraction)
    else:
        parts = {"train": layout.train, "validation": layout.validation, "test": layout.test}
        folders = [f"{name} set {part.folder}" for name, part in parts.items() if part is not None]
        log.info("%s", ", ".join(folders))
    if layout.test is not None and test_fraction != ImageFolderConfig.test_fraction:
        log.warning("data.test_fraction=%g has no effect: the test set is %s", test_fraction, layout.test.folder)
    suffixes = count_suffixes(layout)
    if "," in suffixes:
        log.info("%s: images read: %s", base, suffixes)
    if layout.left_out.counts:
        log.warning("%s: not read: %s", base, layout.left_out)


def _split_test_set(images: Images, test_fraction: float) -> Splits:
    test, train = _split_each_class(images.labels, test_fraction)
    if not len(test) or not len(train):
        raise InputError(f"data.test_fraction={test_fraction} of {len(images)} images leaves one part empty")
    return Splits(train=images.subset(train), test=images.subset(test))


def _check_memory(paths: list[Path], decode: Callable[[Path], Tensor]) -> None:
    """Refuse a set that is too large for memory, before all of it is decoded."""
    shape = decode(paths[0]).shape
    num_bytes = len(paths) * math.prod(shape)
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"{len(paths)} images of {shape[2]}x{shape[1]} need {num_bytes / 2**30:.0f} GiB; at most "
            f"{MAX_BYTES >> 30} GiB are kept in memory\n"
            "  set a smaller data.image_size, or data.storage=disk with a data.image_size"
        )


def _split_each_class(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return ascending indices of a random `fraction` of each class and of the others; the same in every run."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=make_generator(0, "test split", label))
        chosen[members[order[: round(fraction * len(members))]]] = True
    if not chosen.any():  # each class is too small to split
        order = torch.randperm(len(labels), generator=make_generator(0, "test split"))
        chosen[order[: round(fraction * len(labels))]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def _decode_all(paths: list[Path], read: Callable[[Path], Tensor], num_workers: int) -> Tensor:
    """Decode all images to (N, 3, H, W); raise InputError if one cannot be decoded or has another size."""
    first = read(paths[0])
    images = np.empty((len(paths), *first.shape[1:], 3), np.uint8)

    def decode(indices: range) -> None:
        for index in indices:
            image = read(paths[index])
            if image.shape != first.shape:
                raise InputError(
                    f"{paths[index]} is {image.shape[2]}x{image.shape[1]} pixels, {paths[0].name} is "
                    f"{first.shape[2]}x{first.shape[1]}\n  set data.image_size to resize all images to one size"
                )
            images[index] = image.permute(1, 2, 0).numpy()

    starts = range(0, len(paths), IMAGES_PER_TASK)
    small = paths[0].stat().st_size < SMALL_FILE_BYTES
    with ThreadPoolExecutor(1 if small else max(num_workers, 1)) as pool:
        tasks = [range(start, min(start + IMAGES_PER_TASK, len(paths))) for start in starts]
        for future in [pool.submit(decode, task) for task in tasks]:
            future.result()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _decode(path: Path, image_size: int | None, eval_crop_ratio: float) -> Tensor:
    """Return the whole image, or its centre crop resized to `image_size`; uint8, (3, H, W)."""
    if image_size is None:
        return read_image(path)
    return read_crop(path, partial(centre_crop_box, fraction=eval_crop_ratio), image_size)
