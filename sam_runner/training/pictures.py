"""Pictures for TensorBoard: grids of images and confusion matrices, drawn without a plotting library."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAX_LABELLED_CLASSES = 20  # with more classes the squares are too small for names and counts
MAX_SQUARES = 256  # rows of a confusion matrix; with more classes several share a row


def draw_image_grid(images_NCHW: Tensor, columns: int = 8, min_side: int = 48) -> Tensor:
    """Draw images in rows with white lines between them.

    Args:
        images_NCHW: Images with values in [0, 1]. If they do not have three channels, the first one is drawn in grey.
        columns: Number of images in a row.
        min_side: Smallest width in pixels; narrower images are enlarged by the smallest whole factor that reaches it.

    Returns:
        float32, (3, H, W), in [0, 1].
    """
    images = images_NCHW.float().cpu()
    images = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    factor = max(1, -(-min_side // images.shape[-1]))
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    rows = -(-len(images) // columns)
    blank = torch.ones(rows * columns - len(images), *images.shape[1:])
    grid: Tensor = torch.cat([images, blank]).unflatten(0, (rows, columns))
    picture: Tensor = grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return picture


def count_classes_per_square(num_classes: int) -> int:
    """Return how many neighbouring classes share a row of a confusion matrix, so that it fits a picture."""
    return -(-num_classes // MAX_SQUARES)


def draw_confusion_matrix(
    counts: Tensor, classes: Sequence[str], title: str = "true (rows), predicted (columns)"
) -> Tensor:
    """Draw a confusion matrix; a darker square is a larger fraction of its row.

    Names and counts are written for up to `MAX_LABELLED_CLASSES` classes.

    Args:
        counts: Number of examples by (row, column), int64, (S, S), of `metrics.count_pairs` with
            `count_classes_per_square` classes a square.
        classes: Names of the C classes.
        title: Title that says what rows and columns are.

    Returns:
        uint8, (3, H, W).
    """
    fractions = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    is_labelled = len(classes) <= MAX_LABELLED_CLASSES
    square = 44 if is_labelled else max(4, 880 // len(counts))
    margin = 110 if is_labelled else 24
    size = margin + square * len(counts) + 8
    if len(counts) < len(classes):
        title = f"{title}, {count_classes_per_square(len(classes))} classes a square"
    pixels = np.full((size, size, 3), 255, np.uint8)
    shades = (255 - 205 * fractions).astype(np.uint8).repeat(square, 0).repeat(square, 1)
    pixels[margin : margin + len(shades), margin : margin + len(shades), :2] = shades[:, :, None]
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    draw.text((8, 6), title, fill="black", font=font)
    for row, column in counts.nonzero().tolist() if is_labelled else ():
        ink = "white" if fractions[row, column] > 0.5 else "black"
        centre = margin + (column + 0.5) * square, margin + (row + 0.5) * square
        draw.text(centre, str(int(counts[row, column])), fill=ink, font=font, anchor="mm")
    for index, name in enumerate(classes if is_labelled else ()):
        middle = margin + index * square + square / 2
        draw.text((margin - 6, middle), name[:16], fill="black", font=font, anchor="rm")
        draw.text((middle, margin - 6 - 14 * (index % 2)), name[:10], fill="black", font=font, anchor="ms")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
