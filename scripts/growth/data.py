"""Quantities of the data: files of a folder, images in memory, classes."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.loader import ImageLoader
from sam_runner.data.noise import pair
from sam_runner.data.normalisation import Normalisation
from sam_runner.training.metrics import confusion_matrix, evaluation_metrics
from sam_runner.training.pictures import count_classes_per_square, draw_confusion_matrix
from scripts.growth.quantity import Quantity, Work

IMAGENET = 1_281_167  # training images of ImageNet
NUM_CLASSES, MAX_LINKS = 1000, 30_000
NUM_EVALUATED = 5000  # images whose metrics are computed for each number of classes
NUM_LABELS = 200_000  # training labels that noise is applied to
FIRST_STEP = """
import os, sys
from sam_runner.commands import train as train_command
from sam_runner.sam import step as sam
step = sam.SamStep.__call__
sam.SamStep.__call__ = lambda *arguments: (step(*arguments), os._exit(0))
sys.exit(train_command.main())
"""


def link_images(inside: Path, names: list[str]) -> None:
    """Make a folder of links to one small JPEG, as many as a file system allows."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(content, "JPEG")
    inside.mkdir(parents=True)
    for number, name in enumerate(names):
        if number % MAX_LINKS == 0:
            first = inside / name
            first.write_bytes(content.getvalue())
        else:
            os.link(first, f"{inside}/{name}")


def make_old(folder: Path) -> None:
    """Set the times of all folders to an hour ago: the list of a folder that has just changed is not kept."""
    for path, _, _ in os.walk(folder):
        os.utime(path, (time.time() - 3600,) * 2)


def make_files(folder: Path, count: int) -> None:
    """Make `count` training files and a 25th of validation files, in a thousand classes, with ImageNet's names."""
    for part, number in (("train", count), ("val", max(2 * NUM_CLASSES, count // 25))):
        for label in range(NUM_CLASSES):
            name = f"n{label:08d}"
            names = [f"{name}_{index}.JPEG" for index in range(label, number, NUM_CLASSES)]
            link_images(folder / "images" / part / name, names)
    make_old(folder / "images")


def list_files(folder: Path, count: int, *, cached: bool) -> Work:
    """List a folder, for the first time or from the cached list, which is checked."""

    def read() -> None:
        kept = (folder / "cache").is_dir()
        assert kept is cached, "the list is kept by the first part"
        splits = image_folder(root=str(folder / "images"), image_size=32, storage="disk", cache=str(folder / "cache"))
        assert len(splits.train) == count

    return read


def start_run(folder: Path, count: int, name: str) -> Work:
    """Start a run on the folder, up to the end of its first step; the list of files is kept.

    The first run checks files and counts the levels of their pixels, which is also kept.
    """
    words = [
        "data=image_folder", f"data.root={folder / 'images'}", "data.image_size=32", "data.storage=disk",
        "data.num_workers=1", f"data.cache={folder / 'cache'}", f"run_dir={folder / name}", "precision=fp32",
        "model.width=4", "batch_size=64", "device=cpu",
    ]  # fmt: skip
    assert count
    return lambda: subprocess.run([sys.executable, "-c", FIRST_STEP, *words], check=True, capture_output=True)


def prepare_images(folder: Path, count: int) -> Callable[[], ImageLoader]:  # noqa: ARG001
    """Prepare images of 32x32 in memory: their mean and deviation, and the loader."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = make_image_set(pixels, torch.arange(count) % 10, tuple("abcdefghij"))

    def prepare() -> ImageLoader:
        normalisation = Normalisation.from_images(data.images_NCHW)
        return ImageLoader(data, batch_size=256, normalisation=normalisation, device=torch.device("cpu"))

    return prepare


def read_epoch(folder: Path, count: int) -> Work:
    """Go through the batches of an epoch."""
    loader = prepare_images(folder, count)()
    return lambda: [None for _ in loader.epoch()]


def make_classes(folder: Path, count: int) -> None:
    """Make a folder with two images in each class."""
    for label in range(count):
        link_images(folder / "images" / f"n{label:08d}", ["0.jpg", "1.jpg"])


def list_classes(folder: Path, count: int) -> Work:
    """List the folder and split the test set off each class."""

    def read() -> None:
        splits = image_folder(root=str(folder / "images"), image_size=32, storage="disk", test_fraction=0.5)
        assert len(splits.train) == count

    return read


def evaluate_classes(folder: Path, count: int) -> Work:  # noqa: ARG001
    """Compute the metrics of `NUM_EVALUATED` images."""
    logits, labels = torch.randn(NUM_EVALUATED, count), torch.arange(NUM_EVALUATED) % count
    return lambda: evaluation_metrics(logits, labels)


def draw_classes(folder: Path, count: int) -> Work:  # noqa: ARG001
    """Draw the confusion matrix of `NUM_EVALUATED` images."""
    logits, labels = torch.randn(NUM_EVALUATED, count), torch.arange(NUM_EVALUATED) % count
    names, merged = [str(label) for label in range(count)], count_classes_per_square(count)
    return lambda: draw_confusion_matrix(confusion_matrix(logits, labels, merged), names)


def make_noise(folder: Path, count: int) -> Work:  # noqa: ARG001
    """Replace labels class by class."""
    labels = torch.arange(NUM_LABELS) % count
    return lambda: pair(labels, count, 0, rate=0.4)


FILES = Quantity(
    "files",
    (10_000, 100_000, IMAGENET),
    (2000, 10_000),
    {
        "listed for the first time": lambda folder, count: list_files(folder, count, cached=False),
        "cached list read and checked": lambda folder, count: list_files(folder, count, cached=True),
        "first start to the first step": lambda folder, count: start_run(folder, count, "first"),
        "start to the first step": lambda folder, count: start_run(folder, count, "second"),
    },
    make_files,
)
IMAGES = Quantity(
    "images in memory",
    (10_000, 50_000, 250_000),
    (1000, 10_000),
    {"prepared": prepare_images, "an epoch of batches": read_epoch},
)
CLASSES = Quantity(
    "classes",
    (10, 100, 1000, 21_841),
    (10, 100),
    {
        "folder of two images a class listed": list_classes,
        "metrics of 5,000 images": evaluate_classes,
        "picture of their confusion": draw_classes,
        "noise=pair on 200,000 labels": make_noise,
    },
    make_classes,
)
