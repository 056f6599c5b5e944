"""Mixup and CutMix: a batch mixed with itself in another order, and its labels with it.

One share lambda is drawn for each batch, as in the published code of both, as a function of (seed, epoch, batch).
"""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sam_runner.data.augment.augmentation import Augmentation
from sam_runner.utils.seeding import derive_seed, make_generator


class Box(NamedTuple):
    """A part of an image, in pixels; the ends are not in it."""

    top: int
    bottom: int
    left: int
    right: int


def mix_batch(
    images_NCHW: Tensor, labels: Tensor, num_classes: int, augmentation: Augmentation, key: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Images and targets after mixup or CutMix, whichever `augmentation` chooses; as they are where it is neither.

    Args:
        images_NCHW: Floating point, (B, C, H, W), normalised.
        labels: int64, (B,).
        num_classes: K.
        augmentation: Its `mixup` or `cutmix` is alpha: lambda is drawn from Beta(alpha, alpha).
        key: Seed, epoch and number of the batch.

    Returns:
        Images, and targets: probabilities (B, K) of the images' type, or `labels`.
    """
    alpha = augmentation.cutmix if augmentation.mixup is None else augmentation.mixup
    if alpha is None:
        return images_NCHW, labels
    seed, *rest = key
    draws = random.Random(derive_seed(seed, "mixing", *rest))
    partner = torch.randperm(len(labels), generator=make_generator(seed, "partner", *rest)).to(labels.device)
    share = draws.betavariate(alpha, alpha)
    others = images_NCHW[partner]
    if augmentation.mixup is not None:
        images_NCHW = torch.lerp(others, images_NCHW, share)
    else:
        height, width = images_NCHW.shape[2:]
        box = cutmix_box(height, width, share, draws.randrange(height), draws.randrange(width))
        images_NCHW = images_NCHW.clone()
        part = (..., slice(box.top, box.bottom), slice(box.left, box.right))
        images_NCHW[part] = others[part]
        share = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)
    targets = F.one_hot(labels, num_classes).to(images_NCHW.dtype)
    return images_NCHW, torch.lerp(targets[partner], targets, share)


def cutmix_box(height: int, width: int, share: float, row: int, column: int) -> Box:
    """The part that comes from the other image: 1 - `share` of the area around a pixel, cut off at the edges.

    Yun et al., ICCV 2019, equation 2. The share that is left is what the labels are mixed by.
    """
    half = 0.5 * math.sqrt(1 - share)
    rows, columns = int(half * height), int(half * width)
    return Box(max(row - rows, 0), min(row + rows, height), max(column - columns, 0), min(column + columns, width))
