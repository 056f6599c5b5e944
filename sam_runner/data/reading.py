"""Decode image files into memory, or check those on disk, in parallel; one message has all that cannot be used."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_runner.data.files.boxes import centre_crop_box
from sam_runner.data.files.decode import brightest_16_bit_grey, check_image, read_crop, read_image, read_size
from sam_runner.data.files.file_cache import choose_cache, files_key
from sam_runner.data.files.in_threads import describe_faults, for_each_file, is_small_file
from sam_runner.data.files.kept_pixels import keep_pixels
from sam_runner.data.image_sets import ImageFiles, ImageSet, UnreadImages, make_image_set
from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_usable_cores
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
MAX_BYTES = 8 << 30  # pixels kept in memory
MAX_CHECKED = 100_000  # files on disk that are checked before training
NUM_SAMPLED = 100  # files whose size or brightness stands for those of the whole set
MIN_LEVELS = 64  # of 256 grey levels; fewer lose much of what a 16-bit image shows
CACHE_FORMAT = 2  # to be raised when the same files are decoded to other pixels
Request = tuple[Path, tuple[str, ...], int, float]  # root, paths, image_size, eval_crop_ratio


def read_sets(parts: tuple[UnreadImages, ...]) -> list[ImageSet]:
    """Decode image files, or take their pixels from the cache.

    Args:
        parts: Sets of files with the same `num_workers` and `cache`.

    Returns:
        The sets in memory.

    Raises:
        InputError: If files cannot be decoded, the images have several sizes, or they need too much memory. The message
            has the first ten of these files, the log all of them; of sets with different sizes it has one file each.
    """
    if not parts:
        return []
    requests = tuple((part.root, part.paths, part.image_size, part.eval_crop_ratio) for part in parts)
    images = _read_all(requests, parts[0].num_workers, parts[0].cache)
    _require_one_size(parts, images)
    sets = [
        make_image_set(pixels, part.clean_labels, part.classes, part.names)
        for pixels, part in zip(images, parts, strict=True)
    ]
    return [found.with_labels(part.labels) for found, part in zip(sets, parts, strict=True)]


def _require_one_size(parts: Sequence[UnreadImages], images: Sequence[Tensor]) -> None:
    """Refuse sets whose images are of one size each, but not of the same: a network is trained and tested on one."""
    first = images[0].shape[2:]
    for part, pixels in zip(parts, images, strict=True):
        if pixels.shape[2:] != first:
            raise InputError(_describe_sizes(part.root / part.paths[0], pixels.shape[2:], parts[0].paths[0], first))


def check_files(parts: Sequence[ImageFiles]) -> None:
    """Check files that are decoded during training, so that those that cannot be read are known before it.

    Of more than `MAX_CHECKED` files, `MAX_CHECKED` are checked: the same random ones in every run. See `check_image`
    for what is found; the other faults end the run when the image is decoded. Files that did not change since an
    earlier check are not checked again if there is a cache.

    Args:
        parts: Sets of files with the same `cache`.

    Raises:
        InputError: If files cannot be read. The message has the first ten of them, the log all.
    """
    if parts:
        _check_all(tuple((part.root, part.paths) for part in parts), parts[0].cache)


def use_kept_pixels(part: ImageFiles) -> ImageFiles:
    """Return the same files, with the decoded images that ``data.cache`` has of them.

    Raises:
        InputError: See `keep_pixels`.
    """
    return replace(part, kept=keep_pixels(part.root, part.paths, part.cache))


@lru_cache(maxsize=1)  # the jobs of a sweep mostly share one data set
def _check_all(sets: tuple[tuple[Path, tuple[str, ...]], ...], cache: bool | str) -> None:
    chosen = _choose_files_to_check(sets)
    store = choose_cache(cache)
    entry = None
    if store is not None:
        entry = store.path("checked", chain.from_iterable(files_key(root, paths) for root, paths in chosen))
        if store.read(entry) is not None:
            log.info("the image files were checked by an earlier run")
            return
    files = [os.path.join(root, path) for root, paths in chosen for path in paths]
    _warn_of_few_levels(_sample(files))
    faults: dict[str, str] = {}
    for_each_file(files, check_image, count_usable_cores(), "files", faults)
    if faults:
        raise describe_faults([faults[path] for path in sorted(faults)], len(files))
    if store is not None and entry is not None:
        store.write(entry, {"files": len(files)})


def _choose_files_to_check(sets: tuple[tuple[Path, tuple[str, ...]], ...]) -> list[tuple[Path, Sequence[str]]]:
    """Return the files of each set that are to be checked."""
    num_files = sum(len(paths) for _, paths in sets)
    if num_files <= MAX_CHECKED:
        return [*sets]
    log.info("%s of %s image files are checked; the others when they are decoded", f"{MAX_CHECKED:,}", f"{num_files:,}")
    chosen = torch.randperm(num_files, generator=make_generator(0, "checked files"))[:MAX_CHECKED].sort().values
    parts: list[tuple[Path, Sequence[str]]] = []
    for root, paths in sets:
        inside = chosen[chosen < len(paths)].tolist()
        parts.append((root, [paths[position] for position in inside]))
        chosen = chosen[len(inside) :] - len(paths)
    return parts


@lru_cache(maxsize=1)  # the jobs of a sweep mostly share one data set
def _read_all(requests: tuple[Request, ...], num_workers: int, cache: bool | str) -> tuple[Tensor, ...]:
    """Return the pixels of each set, uint8, (N, 3, H, W)."""
    store = choose_cache(cache)
    entries = [None if store is None else store.path("images", _cache_key(*request)) for request in requests]
    found = [
        None if store is None or entry is None else _fitting(store.read(entry), request)
        for entry, request in zip(entries, requests, strict=True)
    ]
    missing = [request for request, images in zip(requests, found, strict=True) if images is None]
    _require_memory(requests)
    if store is not None and not missing:
        log.info("%s images from data.cache", f"{sum(len(paths) for _, paths, *_ in requests):,}")
    decoded = iter(_decode_sets(missing, num_workers))
    for number, (entry, images) in enumerate(zip(entries, found, strict=True)):
        if images is None:
            found[number] = images = next(decoded)
            if store is not None and entry is not None:
                store.write(entry, {"images": images})
    return tuple(images for images in found if images is not None)


def _cache_key(root: Path, paths: tuple[str, ...], *options: Any) -> Iterator[Any]:
    """Yield what the pixels depend on: the files, the decoders, and how the images are cropped."""
    yield CACHE_FORMAT
    yield options
    yield from files_key(root, paths)


def _fitting(content: dict[str, Any] | None, request: Request) -> Tensor | None:
    images = None if content is None else content.get("images")
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        return None
    return images if len(images) == len(request[1]) else None


def _require_memory(requests: tuple[Request, ...]) -> None:
    """Refuse sets that are too large for memory, before they are decoded."""
    num_images = sum(len(paths) for _, paths, *_ in requests)
    root, paths, size, _ = requests[0]
    height, width = (size, size) if size else _first_size(root, paths)
    num_bytes = num_images * math.prod((3, height, width))
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"{num_images} images of {width}x{height} need {num_bytes / 2**30:.0f} GiB; at most "
            f"{MAX_BYTES >> 30} GiB are kept in memory\n"
            "  set a smaller data.image_size, or data.storage=disk with a data.image_size"
        )


def _first_size(root: Path, paths: tuple[str, ...]) -> tuple[int, int]:
    """Return height and width of the first image whose header can be read, (0, 0) if there is none."""
    for name in paths:
        with contextlib.suppress(InputError):  # `_decode_sets` reports it
            return read_size(root / name)
    return 0, 0


def _decode_sets(requests: list[Request], num_workers: int) -> list[Tensor]:
    """Decode sets of files; the error names the files of all sets that cannot be used."""
    num_images = sum(len(paths) for _, paths, *_ in requests)
    if not num_images:
        return []
    log.info("reading %s images into memory", f"{num_images:,}")
    samples = [_sample([os.path.join(root, name) for name in paths]) for root, paths, *_ in requests]
    for sample in samples if not requests[0][2] else []:
        _require_alike_sizes(sample)
    _warn_of_few_levels([*chain.from_iterable(samples)])
    is_small = is_small_file(requests[0][0] / requests[0][1][0])
    workers = 1 if is_small else max(num_workers, 1)
    faults: dict[Path, str] = {}
    if not is_small:  # headers cost a hundredth of decoding, so most faults are known long before the end
        for_each_file(
            [root / name for root, paths, *_ in requests for name in paths], read_size, workers, "headers", faults
        )
        if faults:
            log.warning(
                "%d images have no header that can be read; decoding the others to find all faults", len(faults)
            )
    images = [_decode_set(request, workers, faults) for request in requests]
    if faults:
        raise describe_faults(list(faults.values()), num_images)
    return images


def _sample(files: Sequence[str]) -> list[str]:
    """Return up to `NUM_SAMPLED` files, evenly spaced."""
    return [*files[:: max(1, math.ceil(len(files) / NUM_SAMPLED))]]


def _require_alike_sizes(files: Sequence[str]) -> None:
    """Refuse files if more than a tenth differ in size from the first: not a mistake in some, but a set of many sizes.

    A few files of another size are found when they are decoded, and named one by one.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for path in files:
        with contextlib.suppress(InputError):  # found again when the file is decoded
            sizes[path] = read_size(path)
    first = next(iter(sizes), "")
    others = [path for path, size in sizes.items() if size != sizes[first]]
    if len(others) > len(sizes) / 10:
        raise InputError(_describe_sizes(Path(others[0]), sizes[others[0]], Path(first).name, sizes[first]))


def _warn_of_few_levels(files: Sequence[str]) -> None:
    """Warn if 16-bit grey images are so dark that their upper eight bits, which are kept, have few levels."""
    brightest = max((value for path in files if (value := brightest_16_bit_grey(path)) is not None), default=None)
    if brightest is not None and (levels := (brightest >> 8) + 1) < MIN_LEVELS:
        log.warning(
            "the brightest pixel of the 16-bit grey images is %d of 65535 (in a sample): the upper eight bits, which"
            " are kept, have %s\n  multiply all images by the same factor, so that they span 0 to 65535",
            *(brightest, "one level only" if levels == 1 else f"{levels} levels only"),
        )


def _decode_set(request: Request, workers: int, faults: dict[Path, str]) -> Tensor:
    """Decode a set to (N, 3, H, W); files that cannot be used are added to `faults`, and those in it are left out."""
    root, paths, size, fraction = request
    read = partial(read_crop, choose_box=partial(centre_crop_box, fraction=fraction), size=size) if size else read_image
    positions: dict[Path, list[int]] = {}  # a list of images may name a file several times
    for index, name in enumerate(paths):
        positions.setdefault(root / name, []).append(index)
    files = [path for path in positions if path not in faults]
    reference = next(_readable(files, read, faults), None)
    if reference is None:
        return torch.empty(0)
    first, (_, height, width) = reference
    images = np.empty((len(paths), height, width, 3), np.uint8)

    def decode(path: Path) -> None:
        image = read(path)
        if image.shape[1:] != (height, width):
            raise InputError(_describe_sizes(path, image.shape[1:], first.name, (height, width)))
        images[positions[path]] = image.permute(1, 2, 0).numpy()

    for_each_file(files, decode, workers, "images", faults)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _describe_sizes(path: Path, size: Sequence[int], other: str, other_size: Sequence[int]) -> str:
    """Return the message for two images of different sizes (height, width)."""
    return (
        f"{path} is {size[1]}x{size[0]} pixels, {other} is {other_size[1]}x{other_size[0]}\n"
        "  set data.image_size to resize all images to one size"
    )


def _readable(files: list[Path], read: Callable[[Path], Tensor], faults: dict[Path, str]) -> Iterator[Any]:
    """Yield (path, shape) of the files that can be decoded; add the others to `faults`."""
    for path in files:
        try:
            yield path, read(path).shape
        except InputError as error:
            faults[path] = str(error)
