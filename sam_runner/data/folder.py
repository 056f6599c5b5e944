"""Any folder of images, decoded once and held in memory as one uint8 tensor."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sam_runner.data.sets import ImageSet, Splits, image_set
from sam_runner.errors import InputError
from sam_runner.seeding import generator

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"})
LAYOUT = "<root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg, or <root>/<class>/*.jpg"
MAX_BYTES = 8 << 30  # a set larger than this is not for keeping in memory


def image_folder(
    *, root: str, image_size: int | None = None, test_fraction: float = 0.2, num_workers: int = 4
) -> Splits:
    """A folder with one folder of images per class.

    Accepted: ``root/train/<class>/*`` beside ``root/test/<class>/*`` (or ``val``); ``root/<class>/*``, or root/train
    alone, from which a fixed random `test_fraction` of each class is set apart for testing. Classes are in
    alphabetical order, images within a class too; all are read as RGB.

    Args:
        root: The folder.
        image_size: Scale each image's shorter side to this many pixels and cut out the middle square; None takes the
            images as they are, which then must be of one size.
        test_fraction: Of each class, in (0, 1), where there is no test folder.
        num_workers: Threads that decode.

    Raises:
        InputError: No such folder, no images, classes that differ between the parts, unequal sizes, or an image that
            cannot be read, named with its path.
    """
    base = Path(os.path.expanduser(root))
    if not base.is_dir():
        raise InputError(f"data.root={root} is not a folder\n  expected: {LAYOUT}")
    train = base / "train" if (base / "train").is_dir() else base
    if train == base and any((base / name).is_dir() for name in ("test", "val")):
        raise InputError(f"data.root={root} has a test or val folder but no train folder\n  expected: {LAYOUT}")
    tests = [base / name for name in ("test", "val") if (base / name).is_dir()] if train != base else []
    classes = _classes(train)
    if tests and _classes(tests[0]) != classes:
        different = sorted(set(classes) ^ set(_classes(tests[0])))
        raise InputError(f"{train} and {tests[0]} have different classes; in one only: {', '.join(different[:10])}")
    whole = _load(train, classes, image_size, num_workers)
    if tests:
        return Splits(train=whole, test=_load(tests[0], classes, image_size, num_workers))
    test, kept = _split_each_class(whole.labels, test_fraction)
    if not len(test) or not len(kept):
        raise InputError(f"data.test_fraction={test_fraction} of {len(whole)} images leaves one part empty")
    return Splits(train=whole.subset(kept), test=whole.subset(test))


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _split_each_class(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices set apart and kept, each ascending; the same for every run."""
    apart = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(0, "test split", label))
        apart[members[order[: round(fraction * len(members))]]] = True
    return apart.nonzero().flatten(), (~apart).nonzero().flatten()


def _load(folder: Path, classes: tuple[str, ...], image_size: int | None, num_workers: int) -> ImageSet:
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    empty = set(range(len(classes))) - {label for _, label in paths}
    if not paths or empty:
        names = ", ".join(classes[label] for label in sorted(empty)[:10]) or "no class folders at all"
        raise InputError(
            f"no images in {folder}: {names}\n"
            f"  expected: one folder per class with files of {' '.join(sorted(SUFFIXES))}"
        )
    first = _decode(paths[0][0], image_size)
    num_bytes = len(paths) * first.nbytes
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"{len(paths)} images of {first.shape[1]}x{first.shape[0]} need {num_bytes / 2**30:.0f} GiB; "
            f"data=image_folder holds at most {MAX_BYTES >> 30}\n  set a smaller data.image_size"
        )
    images = np.empty((len(paths), *first.shape), np.uint8)

    def decode(index: int) -> None:
        image = _decode(paths[index][0], image_size)
        if image.shape != first.shape:
            raise InputError(
                f"{paths[index][0]} is {image.shape[1]}x{image.shape[0]} pixels, {paths[0][0].name} is "
                f"{first.shape[1]}x{first.shape[0]}\n  set data.image_size to scale all images to one size"
            )
        images[index] = image

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        for done in [pool.submit(decode, index) for index in range(len(paths))]:
            done.result()
    labels = torch.tensor([label for _, label in paths])
    return image_set(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, classes)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as its upper eight bits; Pillow's own conversion would make everything above 255 white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def _decode(path: Path, image_size: int | None) -> np.ndarray:
    """The image as (H, W, 3) uint8."""
    try:
        with Image.open(path) as opened:
            image = _eight_bits(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}\n  remove it or replace it") from error
    if image_size is not None and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        image = image.resize([max(image_size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)
