"""Decode image files to uint8 tensors of one size: choose a box, crop it, and resize it once with antialiasing."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from sam_runner.data.files.boxes import CropBox
from sam_runner.data.files.jpeg import open_parts, whole_decoder
from sam_runner.utils.errors import InputError

FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")  # accepted image formats, by Pillow's names
SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".tif", ".tiff", ".webp", ".bmp", ".dib", ".ppm", ".pgm",
        ".pbm", ".pnm",
    }
)  # fmt: skip
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)  # what Pillow raises
FILE_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # last bytes of whole files, by Pillow's names


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to RGB, uint8, (3, H, W); the memory layout may be (H, W, 3).

    torchvision, which is faster, decodes RGB and grey JPEG files if it has a decoder; Pillow decodes everything else.
    Pillow reads every header and refuses images of more than 179 million pixels. Only the first frame or page is read.

    Raises:
        InputError: If the file cannot be decoded; the message has its path.
    """
    with _report_unreadable(path):
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return torch.from_numpy(_decode_rgb(opened, content)).permute(2, 0, 1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of an image file from its header.

    Raises:
        InputError: If the file does not begin like an image; the message has its path.
    """
    _, height, width = read_format(path)
    return height, width


def read_format(path: str | Path) -> tuple[str, int, int]:
    """Return format (Pillow's name), height and width of an image file from its header.

    Raises:
        InputError: If the file does not begin like an image; the message has its path.
    """
    with _report_unreadable(path), Image.open(path, formats=FORMATS) as opened:
        return opened.format or "", opened.height, opened.width


def brightest_16_bit_grey(path: str | Path) -> int | None:
    """Return the largest value of an image file of 16-bit grey, None for any other file."""
    with suppress(*UNREADABLE), Image.open(path, formats=FORMATS) as opened:
        if opened.mode.startswith("I"):
            return int(np.asarray(opened).max())
    return None


def check_image(path: str | Path) -> None:
    """Check an image file by its header and its end, which is much cheaper than decoding it.

    If a JPEG or PNG file lacks the end marker of its format, it may be truncated and is decoded. Damage within a file
    is not found.

    Raises:
        InputError: If the file cannot be read as an image; the message has its path.
    """
    with _report_unreadable(path), open(path, "rb") as file, Image.open(file, formats=FORMATS) as opened:
        end = FILE_ENDS.get(opened.format or "", b"")
        file.seek(-len(end), os.SEEK_END)
        is_whole = file.read() == end
    if not is_whole:
        read_image(path)


def read_crop(path: str | Path, choose_box: Callable[[int, int], CropBox], size: int) -> Tensor:
    """Decode a part of an image file and resize it to a square; see `read_image` and `crop_and_resize`.

    A JPEG whose box is at least twice `size` is decoded at 1/2, 1/4 or 1/8 of its size, which is cheaper. Of another
    JPEG only the box is decoded if nvImageCodec is installed; the pixels are the same. Damage below the box is then not
    found.

    Args:
        path: Image file.
        choose_box: Maps height and width of the whole image to the box to crop; it is called once.
        size: Side of the result in pixels.

    Returns:
        RGB, uint8, (3, size, size).

    Raises:
        InputError: If the file cannot be decoded; the message has its path.
    """
    with _report_unreadable(path):
        with open(path, "rb") as file:
            content = file.read()
        parts = open_parts(content)
        if parts is None:
            return _read_crop_whole(content, choose_box, size)
        box = choose_box(parts.height, parts.width)
        part = None if can_reduce(box, size) else parts.decode(box)
        if part is None:
            return _read_crop_whole(content, lambda height, width: box, size)  # noqa: ARG005
        return crop_and_resize(part, CropBox(0, 0, box.height, box.width), size)


def can_reduce(box: CropBox, size: int) -> bool:
    """Return whether a JPEG is decoded at a fraction of its size, to crop `box` and resize it to `size` pixels."""
    return min(box.height, box.width) // size >= 2


def _read_crop_whole(content: bytes, choose_box: Callable[[int, int], CropBox], size: int) -> Tensor:
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        width, height = opened.size
        box = choose_box(height, width)
        if opened.format != "JPEG" or not can_reduce(box, size):
            return crop_and_resize(_decode_rgb(opened, content), box, size)
        reduction = min(box.height, box.width) // size
        draft = opened.draft("RGB", (width // reduction, height // reduction))
        scale = 1.0 if draft is None else draft[1][2] / width
        right = min((box.left + box.width) * scale, opened.width)
        bottom = min((box.top + box.height) * scale, opened.height)
        corners = box.left * scale, box.top * scale, right, bottom
        crop = opened.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, corners)
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def is_image_file(path: str | Path) -> bool:
    """Return whether a file begins like an image of one of the `FORMATS`."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except UNREADABLE:
        return False


@contextmanager
def _report_unreadable(path: str | Path) -> Iterator[None]:
    """Turn every error of a broken image file into an `InputError` with its path."""
    try:
        yield
    except UNREADABLE as error:
        reason = str(error).rpartition("decode_jpeg.cpp")[2].partition(", ")[2] or str(error)
        if isinstance(error, UnidentifiedImageError):  # its own message has the address of a buffer
            reason = "its content is no image" if Path(path).stat().st_size else "it is empty"
        message = f"{path} cannot be read as an image: {reason[:200]}\n  remove it or replace it"
        # Since Python 3.13 the frames of the original keep it alive, and with it the loader that reads the file.
        raise InputError(message) from error.with_traceback(None)


def _decode_rgb(opened: Image.Image, content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a whole image, (H, W, 3)."""
    if opened.format == "JPEG" and opened.mode in ("RGB", "L") and (decode := whole_decoder()):
        return decode(content)
    return np.array(to_8_bits(opened).convert("RGB"))


def to_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper eight bits of 16-bit grey; Pillow's conversion would turn every value above 255 white.

    Args:
        image: An image of any mode; those without 16-bit grey are returned as they are.

    Raises:
        ValueError: If it holds floating-point or 32-bit numbers, as a TIFF can, whose range is not known. Grey of PNG
            and PPM files that Pillow gives in 32 bits has 16.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"it holds {kind} numbers of unknown range; 8 and 16 bits are read")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def crop_and_resize(image_HWC: NDArray[np.uint8], box: CropBox, size: int) -> Tensor:
    """Crop an image to a box and resize it to a square, bilinear with antialiasing.

    Args:
        image_HWC: (H, W, C); it may be read-only.
        box: Part of the image.
        size: Side of the result in pixels.

    Returns:
        uint8, (C, size, size), in memory (size, size, C).
    """
    crop = np.require(
        image_HWC[box.top : box.top + box.height, box.left : box.left + box.width], requirements=("C", "W")
    )
    images_NCHW = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)  # channels_last for torch, unlike x.permute()[None]
    if (box.height, box.width) != (size, size):
        images_NCHW = F.interpolate(images_NCHW, (size, size), mode="bilinear", antialias=True)
    return images_NCHW[0]


def stack_images(images_CHW: Sequence[Tensor]) -> Tensor:
    """Return images of `crop_and_resize` as one tensor (N, C, size, size) in channels_last memory, the cheapest one."""
    return torch.stack([image.permute(1, 2, 0) for image in images_CHW]).permute(0, 3, 1, 2)
