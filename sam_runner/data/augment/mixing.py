"""Mixup and CutMix: mix each image and its label with those of a partner in the same batch.

One lambda is drawn per batch, as in the published code of both, as a function of (seed, epoch, batch).
"""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sam_runner.config.data import AugmentConfig
from sam_runner.utils.seeding import derive_seed, make_generator


class Box(NamedTuple):
    """A rectangle of an image, in pixels; `bottom` and `right` are exclusive."""

    top: int
    bottom: int
    left: int
    right: int


def mix_batch(
    images_NCHW: Tensor, labels: Tensor, num_classes: int, augmentation: AugmentConfig, key: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix, or return the inputs unchanged if `augmentation` enables neither.

    Args:
        images_NCHW: Normalised images, floating point, (B, C, H, W); not modified.
        labels: int64, (B,).
        num_classes: K.
        augmentation: `mixup` or `cutmix` is alpha; lambda is drawn from Beta(alpha, alpha).
        key: Seed, epoch and number of the batch.

    Returns:
        Images, and targets: class probabilities (B, K) in the dtype of the images, or `labels`.
    """
    alpha = augmentation.cutmix if augmentation.mixup is None else augmentation.mixup
    if alpha is None:
        return images_NCHW, labels
    seed, epoch, batch = key
    draws = random.Random(derive_seed(seed, "mixing", epoch, batch))
    partners = torch.randperm(len(labels), generator=make_generator(seed, "partner", epoch, batch)).to(labels.device)
    lam = draws.betavariate(alpha, alpha)
    partner_images = images_NCHW[partners]
    if augmentation.mixup is not None:
        images_NCHW = torch.lerp(partner_images, images_NCHW, lam)
    else:
        height, width = images_NCHW.shape[2:]
        box = cutmix_box(height, width, lam, draws.randrange(height), draws.randrange(width))
        images_NCHW = images_NCHW.clone()
        region = (..., slice(box.top, box.bottom), slice(box.left, box.right))
        images_NCHW[region] = partner_images[region]
        lam = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)
    targets = F.one_hot(labels, num_classes).to(images_NCHW.dtype)
    return images_NCHW, torch.lerp(targets[partners], targets, lam)


def cutmix_box(height: int, width: int, lam: float, row: int, column: int) -> Box:
    """Return the box that CutMix takes from the partner: area 1 - `lam`, centred at a pixel, clipped at the edges.

    Yun et al., ICCV 2019, equation 2. Labels are mixed by the area after clipping.
    """
    half = 0.5 * math.sqrt(1 - lam)
    rows, columns = int(half * height), int(half * width)
    return Box(max(row - rows, 0), min(row + rows, height), max(column - columns, 0), min(column + columns, width))
