"""The decoded images of files on disk, kept in ``data.cache``: later epochs and runs crop them without decoding.

An entry has an index ``pixels-<key>.pt``, see `file_cache`, and the pixels ``pixels-<key>.bin``: all images one after
another. The pixels are mapped into memory, so that all processes of a machine share them. They are kept only if they
fit into half of the memory: reading them from a disk would take longer than decoding the smaller files.
"""

import fcntl
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_runner.data.files.boxes import CropBox
from sam_runner.data.files.decode import can_reduce, crop_and_resize, read_crop, read_format, read_image
from sam_runner.data.files.file_cache import FileCache, choose_cache, files_key
from sam_runner.data.files.in_threads import describe_faults, for_each_file, is_small_file
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import hash_file, write_atomically
from sam_runner.utils.hardware import count_usable_cores, count_usable_memory

log = logging.getLogger("sam_runner")
PIXELS_FORMAT = 1  # to be raised when the same files are decoded to other pixels
MAX_FILES = 100_000  # the sizes and times of more files would take seconds to read
MAX_BYTES = 64 << 30
SHARE = 0.5  # of the memory, and of the free space of the disk
SAMPLE_SIZE = 256  # headers from which the bytes of all images are estimated


@dataclass(frozen=True, eq=False)
class KeptPixels:
    """Decoded images in the file of an entry.

    Attributes:
        path: The file.
        starts: Position of the first byte of each image, int64, (N,).
        sizes: Height and width of each image, int64, (N, 2).
        is_jpeg: Whether each image's file is a JPEG, bool, (N,).
    """

    path: Path
    starts: Tensor
    sizes: Tensor
    is_jpeg: Tensor

    def subset(self, indices: Tensor) -> "KeptPixels":
        """Return the images at `indices`, in that order."""
        return replace(self, starts=self.starts[indices], sizes=self.sizes[indices], is_jpeg=self.is_jpeg[indices])

    def read_crop(self, index: int, file: str, choose_box: Callable[[int, int], CropBox], size: int) -> Tensor:
        """Return the same pixels as `decode.read_crop`.

        Args:
            index: Position of the image.
            file: Its file, which is read where the box is so large that `decode.read_crop` decodes a reduced image.
            choose_box: See `decode.read_crop`.
            size: Side of the result in pixels.

        Returns:
            RGB, uint8, (3, size, size).

        Raises:
            InputError: If the file of the entry is gone, or the image's file cannot be decoded.
        """
        height, width = self.sizes[index].tolist()
        box = choose_box(height, width)
        if self.is_jpeg[index] and can_reduce(box, size):
            return read_crop(file, lambda height, width: box, size)  # noqa: ARG005
        start = int(self.starts[index])
        image = _map_pixels(self.path)[start : start + height * width * 3].reshape(height, width, 3)
        return crop_and_resize(image, box, size)


@lru_cache(maxsize=8)
def _map_pixels(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise InputError(
            f"{path} of data.cache cannot be read: {error.strerror}\n  the same command decodes the images again"
        ) from error


@lru_cache(maxsize=4)  # the jobs of a sweep mostly share one data set
def keep_pixels(root: Path, paths: tuple[str, ...], cache: bool | str) -> KeptPixels | None:
    """Decode the images of files into ``data.cache``, or find them there.

    Args:
        root: Folder that `paths` are relative to.
        paths: The files.
        cache: Value of ``data.cache``.

    Returns:
        The images in the order of `paths`; None without a cache, or if they do not fit, which is logged.

    Raises:
        InputError: If files cannot be decoded. The message has the first ten of them, the log all.
    """
    store = choose_cache(cache)
    if store is None or not paths:
        return None
    if len(paths) > MAX_FILES:
        log.info("data.cache keeps no decoded images: at most those of %s files", f"{MAX_FILES:,}")
        return None
    entry = store.path("pixels", [PIXELS_FORMAT, *files_key(root, paths)])
    written = _time_of(entry)
    kept = _find(store, entry, len(paths))
    if kept is not None:
        log.info("%s decoded images from data.cache", f"{len(paths):,}")
        return kept
    files = [root / path for path in paths]
    if not _fits(files, entry.parent):
        return None
    try:
        with _one_at_a_time(entry):
            kept = None
            if _time_of(entry) != written:  # by another process meanwhile
                kept = _find(store, entry, len(paths))
            if kept is None:
                log.info("decoding %s images into data.cache", f"{len(files):,}")
                kept = _write(store, entry, files)
            return kept
    except OSError as error:
        log.warning("data.cache: %s cannot be written: %s", entry.with_suffix(".bin"), error)
        return None


@contextmanager
def _one_at_a_time(entry: Path) -> Iterator[None]:
    """Let one process at a time write an entry: ranks and parallel jobs start together, and the pixels are large."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_suffix(".lock").open("w") as handle:
        with suppress(OSError):  # a file system without locks: each process writes the same entry
            fcntl.flock(handle, fcntl.LOCK_EX)
            for leftover in entry.parent.glob(f"{entry.stem}.bin.tmp.*"):
                leftover.unlink()  # its process died: it would hold the lock otherwise
        yield


def _find(store: FileCache, entry: Path, num_images: int) -> KeptPixels | None:
    """Return the images of an entry; None if there are none, or they are damaged, which is logged."""
    content, path = store.read(entry), entry.with_suffix(".bin")
    if content is None:
        return None
    try:
        starts, sizes, is_jpeg = content["starts"], content["sizes"], content["is_jpeg"]
        is_whole = len(starts) == len(sizes) == len(is_jpeg) == num_images and path.is_file()
        if is_whole and hash_file(path) == content["sha256"]:
            return KeptPixels(path, starts, sizes, is_jpeg)
    except (KeyError, TypeError, OSError):  # not written by this program, or just deleted
        pass
    log.warning("data.cache: %s is ignored: it is damaged or missing", path)
    return None


def _time_of(entry: Path) -> int | None:
    """Return when an entry was written, in ns; None if there is none. Its manifest is written last."""
    with suppress(OSError):
        return entry.with_suffix(".json").stat().st_mtime_ns
    return None


def _fits(files: list[Path], folder: Path) -> bool:
    """Return whether the decoded images take little enough of memory and disk; if not, log it."""
    chosen = files[:: math.ceil(len(files) / SAMPLE_SIZE)]
    sizes, _ = _read_headers(chosen)
    num_bytes = 3 * int(sizes.prod(1).sum()) * len(files) // len(chosen)
    while not folder.is_dir():
        folder = folder.parent
    limit = min(MAX_BYTES, SHARE * count_usable_memory(), SHARE * shutil.disk_usage(folder).free)
    if num_bytes <= limit:
        return True
    log.info(
        "data.cache keeps no decoded images: they take %.1f GiB, of which memory and disk have room for %.1f GiB",
        *(num_bytes / 2**30, limit / 2**30),
    )
    return False


def _read_headers(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Return the sizes (height, width) of images, int64, (N, 2), and whether they are JPEG files, bool, (N,)."""
    found: dict[Path, tuple[str, int, int]] = {}
    faults: dict[Path, str] = {}
    for_each_file(files, lambda path: found.update({path: read_format(path)}), count_usable_cores(), "headers", faults)
    _raise_faults(faults, len(files))
    headers = [found[path] for path in files]
    sizes, is_jpeg = [size for _, *size in headers], [name == "JPEG" for name, *_ in headers]
    return torch.tensor(sizes), torch.tensor(is_jpeg)


def _raise_faults(faults: dict[Path, str], num_files: int) -> None:
    if faults:
        raise describe_faults([faults[path] for path in sorted(faults)], num_files)


def _write(store: FileCache, entry: Path, files: list[Path]) -> KeptPixels:
    """Decode all images into an entry; its index is written last."""
    place: dict[Path, int] = {}
    order = [place.setdefault(path, len(place)) for path in files]  # a list of images may name a file several times
    sizes, is_jpeg = _read_headers([*place])
    lengths = 3 * sizes.prod(1)
    starts = lengths.cumsum(0) - lengths
    faults: dict[Path, str] = {}
    writing = threading.Lock()

    def write_pixels(handle: IO[bytes]) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, int(lengths.sum()))  # a disk without room is known at once

        def decode(path: Path) -> None:
            number, image = place[path], read_image(path).permute(1, 2, 0).contiguous().numpy()
            if image.shape[:2] != tuple(sizes[number].tolist()):
                raise InputError(f"{path} changes while it is read\n  start again when it is complete")
            with writing:
                handle.seek(int(starts[number]))
                handle.write(memoryview(image))  # type: ignore[arg-type]

        for_each_file([*place], decode, 1 if is_small_file(files[0]) else count_usable_cores(), "images", faults)
        _raise_faults(faults, len(place))

    pixels = entry.with_suffix(".bin")
    write_atomically(pixels, write_pixels)
    starts, sizes, is_jpeg = starts[order], sizes[order], is_jpeg[order]
    store.write(entry, {"starts": starts, "sizes": sizes, "is_jpeg": is_jpeg, "sha256": hash_file(pixels)})
    return KeptPixels(pixels, starts, sizes, is_jpeg)
