"""Augmentation by the batch, on the device: pad-and-crop, flip, cutout, and the normalisation that comes last.

Every draw is a function of (seed, epoch, example): one table of uniform numbers per epoch, with a row for each example,
so neither the order of examples, nor a resume, nor the number of devices changes what an image looks like.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.seeding import generator

NUM_DRAWS = 5  # crop row, crop column, flip, cutout row, cutout column


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image.

    Attributes:
        pad: Pixels added on each side before a window of the original size is cut out; 0 for no crop.
        pad_mode: "reflect" (mirrors without repeating the edge, as the paper's code) or "zero".
        flip: Mirror left to right with probability 1/2.
        cutout: Side in pixels of a square set to the mean image value, centred anywhere in the image, cut off at its
            edges (DeVries and Taylor, 2017); 0 for none.
        min_area: Cut out a random part of at least this share of the image, of random shape, when the file is read
            (`sam_runner.data.decode.random_box`; only for sets on disk); None for the middle.
    """

    pad: int = 0
    pad_mode: str = "reflect"
    flip: bool = False
    cutout: int = 0
    min_area: float | None = None


def draw_table(seed: int, epoch: int, num_examples: int) -> Tensor:
    """Uniform numbers in [0, 1) of one epoch, float32, (num_examples, NUM_DRAWS)."""
    return torch.rand(num_examples, NUM_DRAWS, generator=generator(seed, "augmentation", epoch))


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


def cut_out(images_NCHW: Tensor, draws: Tensor, size: int) -> Tensor:
    """Zero a square of `size` pixels around a random pixel of each (normalised) image."""
    masks = []
    for axis, side in ((3, images_NCHW.shape[2]), (4, images_NCHW.shape[3])):
        centre = (draws[:, axis] * side).long()
        start = centre - size // 2
        position = torch.arange(side, device=images_NCHW.device)
        masks.append((position >= start[:, None]) & (position < start[:, None] + size))
    inside = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return images_NCHW.masked_fill(inside, 0)
