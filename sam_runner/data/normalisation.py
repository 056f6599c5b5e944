"""Mean and standard deviation that images are normalised with: of the training set, of ImageNet, or of the weights."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sam_runner.data.files.boxes import centre_crop_box
from sam_runner.data.files.decode import stack_images
from sam_runner.data.files.file_cache import choose_cache, files_key
from sam_runner.data.files.in_threads import describe_faults
from sam_runner.data.files.kept_pixels import KeptPixels
from sam_runner.data.image_sets import ArraySet, ImageFiles, Images, ImageSet
from sam_runner.utils.console import DETAIL
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import NORMALISATION_FILE, read_json, write_json
from sam_runner.utils.hardware import count_usable_cores, start_threads
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
Source = Literal["set", "imagenet", "weights", "none"]
MAX_STATISTICS_BYTES = 2 << 30  # of pixels; up to here all training images are used, whether in memory or on disk
SAMPLE_SIZE = 4096  # images of a larger set; the mean's standard error is then about 0.002
IMAGES_PER_TASK = 64
LEVELS_FORMAT = 1  # to be raised when the same files are decoded to other pixels


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, for pixel values in [0, 1], or for the values of other inputs.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        source: "set" (the training set), "imagenet", "weights" (the images that the weights were trained on), "none".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Source = "set"

    @staticmethod
    def from_images(images_NCHW: Tensor) -> "Normalisation":
        """Compute both in float64 over all pixels of a uint8 image set; a constant channel has std 1."""
        return Normalisation.from_counts(_count_levels(images_NCHW))

    @staticmethod
    def from_counts(counts: Tensor) -> "Normalisation":
        """Compute both in float64 from the number of pixels of each level, int64, (C, 256)."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        channels = counts.double().unbind()
        means = [float((count * levels).sum() / count.sum()) for count in channels]
        variances = [
            float((count * (levels - mean) ** 2).sum() / count.sum())
            for count, mean in zip(channels, means, strict=True)
        ]
        is_constant = [int((count > 0).sum()) == 1 for count in channels]  # rounding would leave a variance of 1e-35
        deviations = [
            1.0 if constant else variance**0.5 for constant, variance in zip(is_constant, variances, strict=True)
        ]
        return Normalisation(tuple(means), tuple(deviations))

    @staticmethod
    def from_arrays(inputs: Tensor) -> "Normalisation":
        """Compute both in float64 for each entry of the second axis of (N, C, ...); a constant one has std 1."""
        values = inputs.double().movedim(1, 0).flatten(1)
        std = values.std(1, correction=0)
        std = torch.where(values.amax(1) == values.amin(1), 1.0, std)
        return Normalisation(tuple(values.mean(1).tolist()), tuple(std.tolist()))

    @staticmethod
    def from_set(train: Images) -> "Normalisation":
        """Compute both over a training set, the same for images in memory and on disk.

        A set of more than `MAX_STATISTICS_BYTES` of pixels is represented by a fixed sample of `SAMPLE_SIZE` images.

        Raises:
            InputError: If images cannot be read; the message has the first ten of them.
        """
        if isinstance(train, ArraySet):
            return Normalisation.from_arrays(train.inputs)
        channels, height, width = train.shape
        if len(train) * channels * height * width > MAX_STATISTICS_BYTES:
            order = torch.randperm(len(train), generator=make_generator(0, "normalisation"))
            train = train.subset(order[:SAMPLE_SIZE].sort().values)
        if isinstance(train, ImageSet):
            return Normalisation.from_images(train.images_NCHW)
        return _from_files(train.root, train.paths, train.image_size, train.eval_crop_ratio, train.cache, train.kept)

    def require_channels(self, channels: int) -> None:
        """Raise InputError for images with another number of channels."""
        if len(self.mean) != channels:
            raise InputError(
                f"data.normalisation={self.source} is for {len(self.mean)} channels, the images have {channels}\n"
                "  use data.normalisation=set"
            )

    def write(self, folder: Path) -> None:
        """Write ``normalisation.json`` into a run folder."""
        write_json(folder / NORMALISATION_FILE, asdict(self))


IMAGENET_NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet")


def choose_normalisation(
    source: Literal["auto", "set", "imagenet", "weights"],
    train: Images,
    weights: str | None,
    find_published: Callable[[], tuple[tuple[float, ...], tuple[float, ...]] | None],
) -> Normalisation:
    """Return the mean and standard deviation that ``data.normalisation`` names.

    Args:
        source: Value of ``data.normalisation``.
        train: Training set.
        weights: Value of ``model.weights``.
        find_published: Returns mean and standard deviation that the weights were trained with, None if unknown.

    Raises:
        InputError: If the chosen mean and standard deviation are unknown, have another number of channels or are for
            other inputs, or if images cannot be read.
    """
    if isinstance(train, ArraySet) and (source == "auto" or not train.inputs.dtype.is_floating_point):
        if source != "auto":
            raise InputError(f"data.normalisation={source} is for floats, the inputs are integers\n  leave it out")
        return Normalisation((0.0,) * train.shape[0], (1.0,) * train.shape[0], "none")
    if source == "imagenet":
        chosen = IMAGENET_NORMALISATION
    elif source == "set" or weights is None:
        return Normalisation.from_set(train)
    else:
        published = find_published()
        fits = published is not None and len(published[0]) == train.shape[0]
        if source == "auto" and not fits:
            reason = "no" if published is None else f"{len(published[0])}-channel"
            hint = "; data.normalisation=imagenet for those of ImageNet" if train.shape[0] == 3 else ""
            log.info(
                "normalisation: mean and std of the training set, since model.weights=%s has %s mean and std%s",
                weights,
                reason,
                hint,
            )
            return Normalisation.from_set(train)
        if published is None:
            raise InputError(
                f"data.normalisation=weights: it is not known what {weights} was trained with\n"
                "  known: torchvision, timm, checkpoints of runs, safetensors files with metadata mean and std; "
                "else use data.normalisation=set or imagenet"
            )
        chosen = Normalisation(*published, "weights")
    chosen.require_channels(train.shape[0])
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (chosen.mean, chosen.std))
    log.info("normalisation: mean %s, std %s (of %s)", mean, std, chosen.source, extra=DETAIL)
    return chosen


def read_normalisation(folder: Path) -> Normalisation | None:
    """Return the normalisation that a run has stored in its folder, or None if there is none.

    Raises:
        InputError: If the file holds anything else.
    """
    path = folder / NORMALISATION_FILE
    if not path.exists():
        return None
    stored = read_json(path)
    try:
        mean, std = (tuple(float(value) for value in stored[name]) for name in ("mean", "std"))
        if len(mean) != len(std) or not mean or not all(value > 0 for value in std):
            raise ValueError
        return Normalisation(mean, std, stored["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no mean and std of channels\n"
            "  restore it, or remove it: sam-eval and a continued run compute mean and std again"
        ) from error


def _count_levels(images_NCHW: Tensor) -> Tensor:
    """Return the number of pixels of each level by channel, int64, (C, 256)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images_NCHW.unbind(1)])


@lru_cache(maxsize=1)  # the jobs of a sweep mostly share one data set
def _from_files(
    root: Path,
    paths: tuple[str, ...],
    image_size: int,
    eval_crop_ratio: float,
    cache: bool | str,
    kept: KeptPixels | None,
) -> Normalisation:
    """Compute both over the centre crops of files, or find the numbers of their levels in ``data.cache``."""
    store, entry = choose_cache(cache), None
    if store is not None:
        entry = store.path("levels", chain([LEVELS_FORMAT, image_size, eval_crop_ratio], files_key(root, paths)))
        counts = (store.read(entry) or {}).get("counts")
        if isinstance(counts, Tensor) and counts.shape == (3, 256) and counts.sum() > 0:
            return Normalisation.from_counts(counts)
    counts = _count_levels_of_files(root, paths, image_size, eval_crop_ratio, kept)
    if store is not None and entry is not None:
        store.write(entry, {"counts": counts})
    return Normalisation.from_counts(counts)


def _count_levels_of_files(
    root: Path, paths: tuple[str, ...], image_size: int, eval_crop_ratio: float, kept: KeptPixels | None
) -> Tensor:
    no_labels = torch.empty(0, dtype=torch.int64)
    files = ImageFiles(root, paths, no_labels, (), no_labels, image_size, kept=kept)
    choose_box = partial(centre_crop_box, fraction=eval_crop_ratio)
    faults: list[str] = []

    def count(part: Sequence[int]) -> Tensor:
        images = []
        for index in part:
            try:
                images.append(files.read_crop(index, choose_box))
            except InputError as error:
                faults.append(str(error))
        return _count_levels(stack_images(images)) if images else torch.zeros(3, 256, dtype=torch.int64)

    every = range(len(paths))
    tasks = [every[start : start + IMAGES_PER_TASK] for start in every[::IMAGES_PER_TASK]]
    with start_threads(count_usable_cores()) as pool:
        counts = torch.stack(list(pool.map(count, tasks))).sum(0)
    if faults:
        raise describe_faults(sorted(faults), len(paths))
    return counts
