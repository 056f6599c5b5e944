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

from sam_runner.data.decode import centre_crop_box, read_crop, read_image
from sam_runner.data.image_sets import ImageFiles, Images, make_image_set
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"})
LAYOUT = "<root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg, or <root>/<class>/*.jpg"
SMALL_FILE_BYTES = 4096  # about 100x100 pixels; for smaller files one thread is as fast as several
IMAGES_PER_TASK = 256  # decoding one small image is cheaper than submitting it to a thread
MAX_AUTO_BYTES, MAX_BYTES = 2 << 30, 8 << 30  # pixels kept in memory with storage=auto, and with storage=memory


def image_folder(
    *,
    root: str,
    image_size: int | None = None,
    eval_crop_ratio: float = 1.0,
    storage: str = "auto",
    test_fraction: float = 0.2,
    num_workers: int | None = None,
) -> Splits:
    """Read a folder with one folder of images per class.

    The layout is ``root/train/<class>/*`` beside ``root/test/<class>/*`` (or ``val``), or ``root/<class>/*`` or
    ``root/train/<class>/*`` alone. Without a test folder a fixed random `test_fraction` of each class is the test set;
    if the classes are too small for that, of all images together. Classes and the images of a class are in alphabetical
    order. All images are converted to RGB.

    Args:
        root: The folder.
        image_size: Side in pixels to which the centre crop of each image is resized; None keeps the images unchanged,
            which must then all have one size.
        eval_crop_ratio: Side of the centre crop as a fraction of the shorter side, in (0, 1].
        storage: "memory" decodes all images once and keeps them; "disk" decodes them in every epoch and needs
            `image_size`; "auto" is "memory" up to `MAX_AUTO_BYTES` of pixels.
        test_fraction: Fraction of each class for testing, in (0, 1), if there is no test folder.
        num_workers: Number of threads that decode into memory (small files use one); None uses one per core.

    Raises:
        InputError: If the folder or its images are missing, train and test classes differ, image sizes differ, or an
            image cannot be decoded; the message has its path.
    """
    base = Path(os.path.expanduser(root))
    if image_size is None and eval_crop_ratio != 1:
        raise InputError(
            f"data.eval_crop_ratio={eval_crop_ratio:g} has no effect without data.image_size\n  set data.image_size"
        )
    train, test, classes = _find_folders(base, root)
    paths, labels = _list_images(train, classes)
    test_paths, test_labels = _list_images(test, classes) if test else ([], torch.empty(0, dtype=torch.int64))
    if storage == "auto" and image_size is not None and len(paths + test_paths) * 3 * image_size**2 > MAX_AUTO_BYTES:
        storage = "disk"
    if storage == "disk":
        if image_size is None:
            raise InputError("data.storage=disk needs one size for all images\n  set data.image_size")

        def make_images(paths: list[Path], labels: Tensor) -> Images:
            names = tuple(os.path.relpath(path, base) for path in paths)
            return ImageFiles(base, names, labels, classes, labels, image_size, eval_crop_ratio)

    else:
        decode = partial(_decode, image_size=image_size, eval_crop_ratio=eval_crop_ratio)
        _check_memory(paths + test_paths, decode)
        log.info("reading %s images into memory", f"{len(paths + test_paths):,}")
        workers = count_usable_cores() if num_workers is None else num_workers

        def make_images(paths: list[Path], labels: Tensor) -> Images:
            return make_image_set(_decode_all(paths, decode, workers), labels, classes)

    images = make_images(paths, labels)
    if test:
        return Splits(train=images, test=make_images(test_paths, test_labels))
    log.info("%s has no test or val folder: %g of its images are used for testing", base, test_fraction)
    return _split_test_set(images, test_fraction)


def _split_test_set(images: Images, test_fraction: float) -> Splits:
    test, train = _split_each_class(images.labels, test_fraction)
    if not len(test) or not len(train):
        raise InputError(f"data.test_fraction={test_fraction} of {len(images)} images leaves one part empty")
    return Splits(train=images.subset(train), test=images.subset(test))


def _find_folders(base: Path, root: str) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the folder of the training set, that of the test set or None, and the classes."""
    if not base.is_dir():
        raise InputError(f"data.root={root} is not a folder\n  expected: {LAYOUT}")
    train = base / "train" if (base / "train").is_dir() else base
    tests = [base / name for name in ("test", "val") if (base / name).is_dir()]
    if train == base and tests:
        raise InputError(f"data.root={root} has a test or val folder but no train folder\n  expected: {LAYOUT}")
    labelled_tests = [folder for folder in tests if _list_classes(folder)]  # ImageNet's test folder has no classes
    if tests and not labelled_tests:
        raise InputError(f"{tests[0]} has no class folders\n  expected: {LAYOUT}")
    test = labelled_tests[0] if labelled_tests else None
    classes = _list_classes(train)
    if len(classes) == 1:
        raise InputError(f"need at least 2 classes, found 1: {classes[0]} in {train}\n  expected: {LAYOUT}")
    if test and _list_classes(test) != classes:
        different = sorted(set(classes) ^ set(_list_classes(test)))
        raise InputError(
            f"{train} and {test} have different classes; in one only: {', '.join(different[:10])}\n"
            "  both need the same class folders"
        )
    return train, test, classes


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


def _list_classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


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


def _list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Return the image files, sorted by class and path, and their labels."""
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    empty = set(range(len(classes))) - {label for _, label in files}
    if not files or empty:
        names = ", ".join(classes[label] for label in sorted(empty)[:10]) or "no class folders"
        raise InputError(
            f"no images in {folder}: {names}\n"
            f"  expected: one folder per class with files of {' '.join(sorted(SUFFIXES))}"
        )
    return [path for path, _ in files], torch.tensor([label for _, label in files])


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
