"""Augmentation by the batch, on the device: pad-and-crop, flip, cutout, random erasing.

Every draw is a function of (seed, epoch, example): one table of uniform numbers per epoch, with a row for each example,
so neither the order of examples, nor a resume, nor the number of devices changes what an image looks like.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.utils.seeding import make_generator

NUM_DRAWS = 5  # crop row, crop column, flip, cutout row, cutout column
TRIES = 3  # shapes that are drawn for an erased part; one in a hundred does not fit
ERASING_DRAWS = 3 + 2 * TRIES  # whether, row, column; area and aspect ratio of each try
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # ranges of Zhong et al., section 4


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image.

    Attributes:
        pad: Pixels added on each side before a window of the original size is cut out; 0 for no crop.
        pad_mode: "reflect" (mirrors without repeating the edge, as the paper's code) or "zero".
        flip: Mirror left to right with probability 1/2.
        cutout: Side in pixels of a square set to the mean image value, centred anywhere in the image, cut off at its
            edges (DeVries and Taylor, 2017); 0 for none.
        cutout_per_batch: One place of the square for a whole batch, as the paper's code drew it.
        policy: Transformations of colour and shape drawn for each image (`sam_runner.data.augment.policy`): "cifar10", "svhn"
            or "imagenet" of AutoAugment, "randaugment", "trivialaugment" or "none". Between flip and normalisation.
        num_ops: Transformations of RandAugment.
        magnitude: Their strength, from 0 to 30.
        erasing: Probability of erasing a rectangle (Zhong et al., AAAI 2020), see `erase`.
        mixup: Alpha of mixup (`sam_runner.data.augment.mixing`), None for none.
        cutmix: Alpha of CutMix, None for none.
        crop_scale_min: Cut out a random part of at least this share of the image, of random shape, when the file is read
            (`sam_runner.data.decode.random_box`; only for sets on disk); None for the middle.
    """

    pad: int = 0
    pad_mode: str = "reflect"
    flip: bool = False
    cutout: int = 0
    cutout_per_batch: bool = False
    policy: str = "none"
    num_ops: int = 2
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float | None = None
    cutmix: float | None = None
    crop_scale_min: float | None = None


def draw_table(seed: int, epoch: int, num_examples: int, *, erasing: bool = False) -> Tensor:
    """Uniform numbers in [0, 1) of one epoch, float32, (num_examples, NUM_DRAWS); ERASING_DRAWS more for `erase`."""
    table = torch.rand(num_examples, NUM_DRAWS, generator=make_generator(seed, "augmentation", epoch))
    if not erasing:
        return table
    more = torch.rand(num_examples, ERASING_DRAWS, generator=make_generator(seed, "erasing", epoch))
    return torch.cat([table, more], 1)


def windows(images_NCHW: Tensor, pad: int, pad_mode: str) -> Tensor:
    """All crops of the padded images as one view: (N, C, 2 pad + 1, 2 pad + 1, H, W), indexed by row and column offset.

    The padded images are stored once, laid out as they come (channels_last or not); a batch of crops is then a single
    gather from this view, laid out in the same way.
    """
    _, _, height, width = images_NCHW.shape
    if pad:
        rows, columns = _padded_index(height, pad), _padded_index(width, pad)
        outside = (_is_outside(height, pad)[:, None] | _is_outside(width, pad)).to(images_NCHW.device)
        images_NCHW = images_NCHW[:, :, rows][:, :, :, columns]
        if pad_mode == "zero":
            images_NCHW = images_NCHW.masked_fill(outside, 0)
    return images_NCHW.unfold(2, height, 1).unfold(3, width, 1)


def _padded_index(size: int, pad: int) -> Tensor:
    """Source of each padded position under reflection about the edge pixels; in range for any pad."""
    position = torch.arange(-pad, size + pad).abs()
    return torch.minimum(position, 2 * (size - 1) - position).clamp(min=0)


def _is_outside(size: int, pad: int) -> Tensor:
    position = torch.arange(-pad, size + pad)
    return (position < 0) | (position >= size)


def crop_and_flip(windows_of_images: Tensor, indices: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """The examples at `indices`, cropped and flipped by their rows of `draws`; uint8, (B, C, H, W).

    Args:
        windows_of_images: From `windows`.
        indices: int64, (B,).
        draws: (B, NUM_DRAWS), the examples' rows of `draw_table`.
        augmentation: Which of it is done.
    """
    num_offsets = 2 * augmentation.pad + 1
    # A draw is at most 1 - 2^-24, and its product rounds to less than num_offsets.
    rows, columns = ((draws[:, axis] * num_offsets).long() for axis in (0, 1))
    images = windows_of_images[indices, :, rows, columns]
    if augmentation.flip:
        images = torch.where((draws[:, 2] < 0.5)[:, None, None, None], images.flip(-1), images)
    return images


def apply_cutout(images_NCHW: Tensor, draws: Tensor, augmentation: Augmentation, place: Tensor | None = None) -> Tensor:
    """Normalised images with what cutout and random erasing take away.

    Args:
        images_NCHW: Floating point, 0 is the mean.
        draws: The examples' rows of `draw_table`.
        augmentation: Which of it is done.
        place: Two numbers in [0, 1), (2,), that stand for each example's own place of the cutout.
    """
    if augmentation.cutout:
        places = draws[:, 3:5] if place is None else place.expand(len(draws), 2)
        images_NCHW = cut_out(images_NCHW, places, augmentation.cutout)
    if augmentation.erasing:
        images_NCHW = erase(images_NCHW, draws[:, NUM_DRAWS:], augmentation.erasing)
    return images_NCHW


def batch_place(seed: int, epoch: int, batch: int) -> Tensor:
    """The place of the cutout of a whole batch: two uniform numbers, (2,)."""
    return torch.rand(2, generator=make_generator(seed, "cutout", epoch, batch))


def cut_out(images_NCHW: Tensor, places: Tensor, size: int) -> Tensor:
    """Zero a square of `size` pixels around a pixel of each (normalised) image; `places` in [0, 1), (B, 2)."""
    height, width = images_NCHW.shape[2:]
    tops, lefts = ((places[:, axis] * side).long() - size // 2 for axis, side in enumerate((height, width)))
    return images_NCHW.masked_fill(_inside(tops, lefts, size, size, height, width), 0)


def erase(images_NCHW: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): zero a rectangle of each (normalised) image with a probability.

    Its area is uniform in [0.02, 1/3] of the image's, its aspect ratio log-uniform in [0.3, 1/0.3], its place uniform
    where it fits; a shape that does not fit is drawn again, `TRIES` in all, after which nothing is erased.

    Args:
        images_NCHW: Floating point, 0 is the mean.
        draws: In [0, 1), (B, ERASING_DRAWS).
        probability: In [0, 1].
    """
    height, width = images_NCHW.shape[2:]
    areas = (ERASED_AREA[0] + draws[:, 3::2] * (ERASED_AREA[1] - ERASED_AREA[0])) * height * width
    low, high = map(math.log, ERASED_ASPECT)
    aspects = (low + draws[:, 4::2] * (high - low)).exp()
    heights, widths = (areas * aspects).sqrt().round().long(), (areas / aspects).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.long().argmax(1, keepdim=True)
    rows, columns = heights.gather(1, first).squeeze(1), widths.gather(1, first).squeeze(1)
    rows = rows * ((draws[:, 0] < probability) & fits.any(1))
    tops, lefts = (draws[:, 1] * (height - rows + 1)).long(), (draws[:, 2] * (width - columns + 1)).long()
    return images_NCHW.masked_fill(_inside(tops, lefts, rows, columns, height, width), 0)


def _inside(tops: Tensor, lefts: Tensor, rows: Tensor | int, columns: Tensor | int, height: int, width: int) -> Tensor:
    """Masks of rectangles that may reach over the edges, (B, 1, height, width)."""
    masks = []
    for start, length, side in ((tops, rows, height), (lefts, columns, width)):
        position = torch.arange(side, device=start.device)
        end = start + length
        masks.append((position >= start[:, None]) & (position < end[:, None]))
    return masks[0][:, None, :, None] & masks[1][:, None, None, :]
