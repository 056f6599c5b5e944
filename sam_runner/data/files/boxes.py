"""Boxes to crop from an image: a square in the middle, or a random one."""

import math
import random
from typing import NamedTuple


class CropBox(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def centre_crop_box(height: int, width: int, fraction: float = 1.0) -> CropBox:
    """Return the centred square whose side is `fraction` of the shorter side, at least one pixel."""
    side = max(1, round(fraction * min(height, width)))
    return CropBox((height - side) // 2, (width - side) // 2, side, side)


def random_crop_box(height: int, width: int, crop_scale_min: float, draws: random.Random) -> CropBox:
    """Draw a box as torchvision's RandomResizedCrop does (Szegedy et al., CVPR 2015, section 6).

    The area is uniform in [crop_scale_min, 1] of the image's, the aspect ratio log-uniform in [3/4, 4/3]. After ten
    boxes that do not fit, the result is the largest centred box whose aspect ratio is in that range.
    """
    for _ in range(10):
        area = draws.uniform(crop_scale_min, 1) * height * width
        aspect = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return CropBox(
                draws.randint(0, height - box_height), draws.randint(0, width - box_width), box_height, box_width
            )
    box_width = min(width, round(height * 4 / 3))
    box_height = min(height, round(width * 4 / 3))
    return CropBox((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
