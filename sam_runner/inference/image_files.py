"""Image files that runs are applied to: where they are, their labels, and their pixels as a network needs them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sam_runner.data.datasets.folder_layout import MAX_LISTED, SPLIT_NAMES, list_images
from sam_runner.data.files.boxes import centre_crop_box
from sam_runner.data.files.decode import read_crop, read_image
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores, start_threads

log = logging.getLogger("sam_runner")
UNKNOWN = -1  # label of an image whose class is not known
IMAGES_PER_CHUNK = 512
GREY = torch.tensor([19595, 38470, 7471])  # 65536 times the weights of red, green and blue in ITU-R BT.601


@dataclass(frozen=True)
class FoundFiles:
    """Image files.

    Attributes:
        paths: The files.
        labels: Class of each file, `UNKNOWN` where the file is in no folder that is called like a class.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]


def find_files(paths: Sequence[Path], classes: Sequence[str]) -> FoundFiles:
    """Find the image files among some files and below some folders.

    The label of a file below a folder is the outermost folder on the way to it that is called like a class. A file
    that is given itself has no label. Files that are no images are counted in a log line.

    Args:
        paths: Files and folders.
        classes: Names of the classes.

    Raises:
        InputError: If a path does not exist, or there is no image below a folder.
    """
    found: list[Path] = []
    labels: list[int] = []
    for path in paths:
        if path.is_dir():
            names, left_out = list_images(str(path))
            if not names:
                raise InputError(f"no image in {path}\n  accepted: a folder with image files, or image files")
            if left_out.counts:
                log.warning("%s: not read: %s", path, left_out)
            found += [path / name for name in names]
            labels += [_label(name, classes) for name in names]
        elif path.is_file():
            found.append(path)
            labels.append(UNKNOWN)
        else:
            raise InputError(f"{path} does not exist\n  accepted: run folders, a folder with image files, image files")
    return FoundFiles(tuple(found), tuple(labels))


def find_labelled_files(folder: Path, classes: Sequence[str]) -> FoundFiles:
    """Find the image files below a folder that has a folder for each class; every file must have a label.

    Raises:
        InputError: If it is not a folder, or holds no image, the splits of a data set, or images outside the folders of
            the classes.
    """
    if not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder\n  give a folder with one folder of images for each class")
    inner = {path.name for path in folder.iterdir() if path.is_dir()}
    if splits := sorted(name for name in inner - {*classes} if name.lower() in SPLIT_NAMES):
        raise InputError(f"--data {folder} holds splits\n  give one of them: --data {folder / splits[-1]}")
    found = find_files([folder], classes)
    unlabelled = [path for path, label in zip(found.paths, found.labels, strict=True) if label == UNKNOWN]
    if unlabelled:
        known = ", ".join(classes[:MAX_LISTED]) + (", ..." if len(classes) > MAX_LISTED else "")
        raise InputError(
            f"--data {folder}: images outside the class folders: {len(unlabelled):,}, such as {unlabelled[0]}\n"
            f"  expected: {folder}/<class>/*.jpg with the classes {known}"
        )
    return found


def _label(name: str, classes: Sequence[str]) -> int:
    return next((classes.index(part) for part in name.split("/")[:-1] if part in classes), UNKNOWN)


def make_reader(shape: tuple[int, ...], eval_crop_ratio: float) -> Callable[[Path], Tensor]:
    """Return the function that reads an image file for a network.

    The centre crop of an image is resized to the network's size, as folders of images are read for evaluation. A
    network for one channel gets grey levels by ITU-R BT.601, as Pillow computes them. Networks for images that are not
    square get images of their size only.

    Args:
        shape: (C, H, W) of the network's images.
        eval_crop_ratio: Side of the centre crop as a fraction of the shorter side, in (0, 1].

    Returns:
        Function from the path of a file to its pixels, uint8, (C, H, W). It raises `InputError` for a file that cannot
        be read or has another size.

    Raises:
        InputError: If the network is for neither one nor three channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"the network needs images of {channels} channels\n  image files are read with 1 or 3")

    def read(path: Path) -> Tensor:
        if height == width:
            image = read_crop(path, partial(centre_crop_box, fraction=eval_crop_ratio), height)
        else:
            image = read_image(path)
            if image.shape[1:] != (height, width):
                size = f"{image.shape[2]}x{image.shape[1]}"
                raise InputError(f"{path} is {size} pixels, the network needs {width}x{height}\n  resize the image")
        if channels == 3:
            return image
        return ((image.int() * GREY[:, None, None]).sum(0, keepdim=True) + 0x8000 >> 16).to(torch.uint8)

    return read


def decode_files(
    paths: Sequence[Path], read: Callable[[Path], Tensor]
) -> Iterator[tuple[Tensor, list[int], dict[int, InputError]]]:
    """Decode files in threads, chunk after chunk; the next chunk is decoded while the caller works.

    Args:
        paths: The files.
        read: Function from a path to pixels, see `make_reader`.

    Yields:
        For each chunk of `IMAGES_PER_CHUNK` files: the images that can be read, uint8, (n, C, H, W); their positions in
        `paths`; and an error for each other file, by its position. A chunk without a readable file has an empty tensor.
    """
    with start_threads(count_usable_cores()) as pool:

        def submit(start: int) -> list[Future[Tensor]]:
            return [pool.submit(read, path) for path in paths[start : start + IMAGES_PER_CHUNK]]

        upcoming = submit(0)
        for start in range(0, len(paths), IMAGES_PER_CHUNK):
            current, upcoming = upcoming, submit(start + IMAGES_PER_CHUNK)
            images: list[Tensor] = []
            positions: list[int] = []
            errors: dict[int, InputError] = {}
            for position, future in enumerate(current, start):
                try:
                    images.append(future.result())
                    positions.append(position)
                except InputError as error:
                    errors[position] = error
            yield torch.stack(images) if images else torch.empty(0, dtype=torch.uint8), positions, errors
