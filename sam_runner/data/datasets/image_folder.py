"""Any folder of images with a folder per class: decoded once and kept in memory, or read from disk in every epoch."""

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

from sam_runner.data.decode import centre_box, read_image, read_part
from sam_runner.data.image_sets import ImageFiles, Images, Splits, image_set
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"})
LAYOUT = "<root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg, or <root>/<class>/*.jpg"
SMALL_FILE = 4096  # bytes, 100x100 pixels: below, two threads spend more time on waiting for each other than they save
PART = 256  # images that a thread decodes at a time: to hand over one small image takes longer than to decode it
AUTO_BYTES, MAX_BYTES = 2 << 30, 8 << 30  # of pixels that are kept in memory unasked, and at all


def image_folder(
    *,
    root: str,
    image_size: int | None = None,
    eval_crop_ratio: float = 1.0,
    storage: str = "auto",
    test_fraction: float = 0.2,
    num_workers: int | None = None,
) -> Splits:
    """A folder with one folder of images per class.

    Accepted: ``root/train/<class>/*`` beside ``root/test/<class>/*`` (or ``val``); ``root/<class>/*``, or root/train
    alone, from which a fixed random `test_fraction` of each class is set apart for testing (of all images together,
    where classes are too small for that). Classes are in alphabetical order, images within a class too; all are read
    as RGB.

    Args:
        root: The folder.
        image_size: Scale the middle square of each image to this side in pixels; None takes the images as they are,
            which then must be of one size.
        eval_crop_ratio: Side of that square as a part of the shorter side, in (0, 1].
        storage: "memory" decodes all images once and keeps them; "disk" decodes them in every epoch, which needs
            `image_size`; "auto" is memory for up to `AUTO_BYTES`.
        test_fraction: Of each class, in (0, 1), where there is no test folder.
        num_workers: Threads that decode into memory, one for small files; None: as many as cores.

    Raises:
        InputError: No such folder, no images, classes that differ between the parts, unequal sizes, or an image that
            cannot be read, named with its path.
    """
    base = Path(os.path.expanduser(root))
    if image_size is None and eval_crop_ratio != 1:
        raise InputError(
            f"data.eval_crop_ratio={eval_crop_ratio:g} has no effect without data.image_size\n  set data.image_size"
        )
    train, test, classes = _folders(base, root)
    paths, labels = _list(train, classes)
    tests, test_labels = _list(test, classes) if test else ([], torch.empty(0, dtype=torch.int64))
    if storage == "auto" and image_size is not None and len(paths + tests) * 3 * image_size**2 > AUTO_BYTES:
        storage = "disk"
    if storage == "disk":
        if image_size is None:
            raise InputError("data.storage=disk scales images when they are read\n  set data.image_size")

        def images_of(paths: list[Path], labels: Tensor) -> Images:
            names = tuple(os.path.relpath(path, base) for path in paths)
            return ImageFiles(base, names, labels, classes, labels, image_size, eval_crop_ratio)

    else:
        decode = partial(_decode, image_size=image_size, eval_crop_ratio=eval_crop_ratio)
        _require_room(paths + tests, decode)
        log.info("reading %s images into memory", f"{len(paths + tests):,}")
        workers = count_usable_cores() if num_workers is None else num_workers

        def images_of(paths: list[Path], labels: Tensor) -> Images:
            return image_set(_decode_all(paths, decode, workers), labels, classes)

    whole = images_of(paths, labels)
    if test:
        return Splits(train=whole, test=images_of(tests, test_labels))
    log.info("%s has no test or val folder: %g of its images are set apart for testing", base, test_fraction)
    return _parted(whole, test_fraction)


def _parted(whole: Images, test_fraction: float) -> Splits:
    apart, kept = _split_each_class(whole.labels, test_fraction)
    if not len(apart) or not len(kept):
        raise InputError(f"data.test_fraction={test_fraction} of {len(whole)} images leaves one part empty")
    return Splits(train=whole.subset(kept), test=whole.subset(apart))


def _folders(base: Path, root: str) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Folder of the training set, of the test set if there is one, and the classes."""
    if not base.is_dir():
        raise InputError(f"data.root={root} is not a folder\n  expected: {LAYOUT}")
    train = base / "train" if (base / "train").is_dir() else base
    tests = [base / name for name in ("test", "val") if (base / name).is_dir()]
    if train == base and tests:
        raise InputError(f"data.root={root} has a test or val folder but no train folder\n  expected: {LAYOUT}")
    sorted_tests = [folder for folder in tests if _classes(folder)]  # ImageNet's test folder has no classes
    if tests and not sorted_tests:
        raise InputError(f"{tests[0]} has no class folders: put its images into them\n  expected: {LAYOUT}")
    tests = sorted_tests
    classes = _classes(train)
    if len(classes) == 1:
        raise InputError(f"need at least 2 classes, found 1: {classes[0]} in {train}\n  expected: {LAYOUT}")
    if tests and _classes(tests[0]) != classes:
        different = sorted(set(classes) ^ set(_classes(tests[0])))
        raise InputError(f"{train} and {tests[0]} have different classes; in one only: {', '.join(different[:10])}")
    return train, tests[0] if tests else None, classes


def _require_room(paths: list[Path], decode: Callable[[Path], Tensor]) -> None:
    """Refuse what does not fit into memory before it is decoded."""
    shape = decode(paths[0]).shape
    num_bytes = len(paths) * math.prod(shape)
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"{len(paths)} images of {shape[2]}x{shape[1]} need {num_bytes / 2**30:.0f} GiB; at most "
            f"{MAX_BYTES >> 30} are kept in memory\n  set a smaller data.image_size, or data.storage=disk with one"
        )


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _split_each_class(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices set apart and kept, each ascending; the same for every run."""
    apart = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=make_generator(0, "test split", label))
        apart[members[order[: round(fraction * len(members))]]] = True
    if not apart.any():  # of classes that are too small to be parted
        order = torch.randperm(len(labels), generator=make_generator(0, "test split"))
        apart[order[: round(fraction * len(labels))]] = True
    return apart.nonzero().flatten(), (~apart).nonzero().flatten()


def _list(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Image files by class and name, and their labels."""
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    empty = set(range(len(classes))) - {label for _, label in found}
    if not found or empty:
        names = ", ".join(classes[label] for label in sorted(empty)[:10]) or "no class folders at all"
        raise InputError(
            f"no images in {folder}: {names}\n"
            f"  expected: one folder per class with files of {' '.join(sorted(SUFFIXES))}"
        )
    return [path for path, _ in found], torch.tensor([label for _, label in found])


def _decode_all(paths: list[Path], read: Callable[[Path], Tensor], num_workers: int) -> Tensor:
    """All images as (N, 3, H, W); InputError where one cannot be read or has another size."""
    first = read(paths[0])
    images = np.empty((len(paths), *first.shape[1:], 3), np.uint8)

    def decode(indices: range) -> None:
        for index in indices:
            image = read(paths[index])
            if image.shape != first.shape:
                raise InputError(
                    f"{paths[index]} is {image.shape[2]}x{image.shape[1]} pixels, {paths[0].name} is "
                    f"{first.shape[2]}x{first.shape[1]}\n  set data.image_size to scale all images to one size"
                )
            images[index] = image.permute(1, 2, 0).numpy()

    parts = [range(start, min(start + PART, len(paths))) for start in range(0, len(paths), PART)]
    small = paths[0].stat().st_size < SMALL_FILE
    with ThreadPoolExecutor(1 if small else max(num_workers, 1)) as pool:
        for done in [pool.submit(decode, part) for part in parts]:
            done.result()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _decode(path: Path, image_size: int | None, eval_crop_ratio: float) -> Tensor:
    """The image as it is, or its middle square scaled; uint8, (3, H, W)."""
    if image_size is None:
        return read_image(path)
    return read_part(path, partial(centre_box, fraction=eval_crop_ratio), image_size)
