"""From an image file to uint8 of one size: decoded, then the part that is wanted scaled once, with antialiasing."""

import io
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from sam_runner.utils.errors import InputError


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def read_image(path: str | Path) -> Tensor:
    """The image as RGB, uint8, (3, H, W); the memory may be laid out H, W, 3.

    JPEG is decoded by torchvision while it has a decoder (1.4 times as fast as Pillow), everything else by Pillow,
    which also looks at the header first: it refuses images of more than 179 million pixels.

    Raises:
        InputError: Where it cannot be read, with the path.
    """
    with _named(path):
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            return _decoded(opened, content)


def read_part(path: str | Path, choose: Callable[[int, int], Box], size: int) -> Tensor:
    """A part of the image as RGB, uint8, (3, size, size); see `read_image` and `scaled`.

    A JPEG that is to be scaled down to a half or less is decoded at a half, a quarter or an eighth, which is cheaper.

    Args:
        path: Of the file.
        choose: The part, from the height and width of the whole image.
        size: Side of the result in pixels.

    Raises:
        InputError: Where it cannot be read, with the path.
    """
    with _named(path):
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            box = choose(height, width)
            reduction = min(box.height, box.width) // size
            if opened.format != "JPEG" or reduction < 2:
                return scaled(_decoded(opened, content), box, size)
            drafted = opened.draft("RGB", (width // reduction, height // reduction))
            scale = 1.0 if drafted is None else drafted[1][2] / width
            right = min((box.left + box.width) * scale, opened.width)
            bottom = min((box.top + box.height) * scale, opened.height)
            corners = box.left * scale, box.top * scale, right, bottom
            part = opened.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, corners)
            return torch.from_numpy(np.array(part)).permute(2, 0, 1)


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Whatever a broken file leads to, in one message with its path."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        reason = str(error).rpartition("decode_jpeg.cpp")[2].partition(", ")[2] or str(error)
        if isinstance(error, UnidentifiedImageError):  # whose message has the address of a buffer
            reason = "its content is no image" if Path(path).stat().st_size else "it is empty"
        raise InputError(f"{path} cannot be read as an image: {reason[:200]}\n  remove it or replace it") from error


def _decoded(opened: Image.Image, content: bytes) -> Tensor:
    if opened.format == "JPEG" and opened.mode in ("RGB", "L") and (decode := _jpeg_decoder()):
        return decode(content)
    return torch.from_numpy(np.array(_eight_bits(opened).convert("RGB"))).permute(2, 0, 1)


@cache
def _jpeg_decoder() -> Callable[[bytes], Tensor] | None:
    """Of torchvision, which means to hand its decoders over to TorchCodec some day; None where it has done so."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # imported here: it takes a second
    except ImportError:
        return None

    def decode(content: bytes) -> Tensor:
        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return image

    return decode


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as its upper eight bits; Pillow's own conversion would make everything above 255 white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def centre_box(height: int, width: int, fraction: float = 1.0) -> Box:
    """The square in the middle whose side is `fraction` of the shorter side, at least one pixel."""
    side = max(1, round(fraction * min(height, width)))
    return Box((height - side) // 2, (width - side) // 2, side, side)


def random_box(height: int, width: int, crop_scale_min: float, draws: random.Random) -> Box:
    """A part of random area and shape, as in the training of Inception (Szegedy et al., CVPR 2015, section 6).

    Its area is uniform in [crop_scale_min, 1] of the image's, its aspect ratio log-uniform in [3/4, 4/3]; after ten that do
    not fit, the largest part in the middle whose aspect ratio is in that range.
    """
    for _ in range(10):
        area = draws.uniform(crop_scale_min, 1) * height * width
        aspect = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return Box(
                draws.randint(0, height - box_height), draws.randint(0, width - box_width), box_height, box_width
            )
    box_width = min(width, round(height * 4 / 3))
    box_height = min(height, round(width * 4 / 3))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def scaled(image_CHW: Tensor, box: Box, size: int) -> Tensor:
    """The part of a uint8 image as (C, size, size), bilinear with antialiasing."""
    part = image_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[1:] == (size, size):
        return part
    return F.interpolate(part[None], (size, size), mode="bilinear", antialias=True)[0]
