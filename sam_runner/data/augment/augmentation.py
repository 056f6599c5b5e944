"""Augmentation of batches on the device: pad-and-crop, flip, cutout, random erasing.

Every random number is a function of (seed, epoch, example): one table of uniform numbers per epoch has one row per
example. The order of the examples, a resume and the number of devices therefore do not change an image.
"""

import math

import torch
from torch import Tensor

from sam_runner.config.data import AugmentConfig
from sam_runner.utils.seeding import make_generator

NUM_DRAWS = 5  # crop row, crop column, flip, cutout row, cutout column
MAX_TRIES = 3  # rectangles drawn per image for random erasing; one does not fit with probability 0.8%, all three 5e-7
NUM_ERASING_DRAWS = 3 + 2 * MAX_TRIES  # erase or not, row, column; area and aspect ratio of each try
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # nearly torchvision's; Zhong's code: area to 0.4


def draw_table(seed: int, epoch: int, num_examples: int, *, erasing: bool = False) -> Tensor:
    """Draw the uniform numbers of one epoch.

    Returns:
        Numbers in [0, 1), float32, (num_examples, NUM_DRAWS); with `erasing` NUM_ERASING_DRAWS more columns.
    """
    table = torch.rand(num_examples, NUM_DRAWS, generator=make_generator(seed, "augmentation", epoch))
    if not erasing:
        return table
    erasing_table = torch.rand(num_examples, NUM_ERASING_DRAWS, generator=make_generator(seed, "erasing", epoch))
    return torch.cat([table, erasing_table], 1)


def unfold_crops(images_NCHW: Tensor, pad: int, pad_mode: str) -> Tensor:
    """Return a view of all crops of the padded images.

    The padded images are stored once, in the memory format of the input (channels_last or not). A batch of crops is a
    single gather from the view and keeps that format.

    Returns:
        (N, C, 2 pad + 1, 2 pad + 1, H, W), indexed by row and column offset of the crop.
    """
    _, _, height, width = images_NCHW.shape
    if pad:
        rows, columns = _reflected_index(height, pad), _reflected_index(width, pad)
        is_padding = (_is_padding(height, pad)[:, None] | _is_padding(width, pad)).to(images_NCHW.device)
        images_NCHW = images_NCHW[:, :, rows][:, :, :, columns]
        if pad_mode == "zero":
            images_NCHW = images_NCHW.masked_fill(is_padding, 0)
    return images_NCHW.unfold(2, height, 1).unfold(3, width, 1)


def _reflected_index(size: int, pad: int) -> Tensor:
    """Return the source of each padded position under reflection about the edge pixels; valid for any `pad`."""
    position = torch.arange(-pad, size + pad).abs()
    return torch.minimum(position, 2 * (size - 1) - position).clamp(min=0)


def _is_padding(size: int, pad: int) -> Tensor:
    position = torch.arange(-pad, size + pad)
    return (position < 0) | (position >= size)


def crop_and_flip(crops: Tensor, indices: Tensor, draws: Tensor, augmentation: AugmentConfig) -> Tensor:
    """Crop and flip the images at `indices`; return (B, C, H, W) in the dtype of `crops`.

    Args:
        crops: All crops of the images, from `unfold_crops`.
        indices: Positions of the images, int64, (B,).
        draws: Rows of `draw_table` for the images, (B, NUM_DRAWS).
        augmentation: Enables crop and flip.
    """
    num_offsets = 2 * augmentation.pad + 1
    # A draw is at most 1 - 2^-24, and its product rounds to less than num_offsets.
    rows, columns = ((draws[:, axis] * num_offsets).long() for axis in (0, 1))
    images = crops[indices, :, rows, columns]
    if augmentation.flip:
        images = torch.where((draws[:, 2] < 0.5)[:, None, None, None], images.flip(-1), images)
    return images


def cutout_and_erase(images_NCHW: Tensor, draws: Tensor, augmentation: AugmentConfig, centre: Tensor | None) -> Tensor:
    """Apply cutout and random erasing to normalised images.

    Args:
        images_NCHW: Floating point; 0 is the mean.
        draws: Rows of `draw_table` for the images.
        augmentation: Enables cutout and erasing.
        centre: Cutout centre of all images, two numbers in [0, 1), (2,); None takes each image's own from `draws`.
    """
    if augmentation.cutout:
        centres = draws[:, 3:5] if centre is None else centre.expand(len(draws), 2)
        images_NCHW = zero_square(images_NCHW, centres, augmentation.cutout)
    if augmentation.erasing:
        images_NCHW = erase_rectangle(images_NCHW, draws[:, NUM_DRAWS:], augmentation.erasing)
    return images_NCHW


def draw_batch_centre(seed: int, epoch: int, batch: int) -> Tensor:
    """Draw the cutout centre of a whole batch: two uniform numbers, (2,)."""
    return torch.rand(2, generator=make_generator(seed, "cutout", epoch, batch))


def zero_square(images_NCHW: Tensor, centres: Tensor, size: int) -> Tensor:
    """Zero a square of `size` pixels in each image; `centres` are fractions of height and width in [0, 1), (B, 2)."""
    height, width = images_NCHW.shape[2:]
    tops, lefts = ((centres[:, axis] * side).long() - size // 2 for axis, side in enumerate((height, width)))
    return images_NCHW.masked_fill(_rectangle_masks(tops, lefts, size, size, height, width), 0)


def erase_rectangle(images_NCHW: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): zero a rectangle of each normalised image with a probability.

    The area is uniform in [0.02, 1/3] of the image's, the aspect ratio log-uniform in [0.3, 1/0.3], the position
    uniform where the rectangle fits. A rectangle that does not fit is drawn again; after `MAX_TRIES` nothing is erased.

    Args:
        images_NCHW: Floating point; 0 is the mean.
        draws: Uniform numbers in [0, 1), (B, NUM_ERASING_DRAWS).
        probability: Probability of erasing, in [0, 1].
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
    return images_NCHW.masked_fill(_rectangle_masks(tops, lefts, rows, columns, height, width), 0)


def _rectangle_masks(
    tops: Tensor, lefts: Tensor, rows: Tensor | int, columns: Tensor | int, height: int, width: int
) -> Tensor:
    """Return masks (B, 1, height, width) of rectangles, clipped at the edges of the image."""
    masks = []
    for start, length, side in ((tops, rows, height), (lefts, columns, width)):
        position = torch.arange(side, device=start.device)
        end = start + length
        masks.append((position >= start[:, None]) & (position < end[:, None]))
    return masks[0][:, None, :, None] & masks[1][:, None, None, :]
