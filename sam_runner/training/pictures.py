"""Pictures for TensorBoard, drawn without a plotting library."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LARGEST_TABLE = 20  # classes; beyond that cells are too small for their counts


def image_grid(images_NCHW: Tensor, columns: int = 8, min_side: int = 48) -> Tensor:
    """Images side by side with a white line between, small ones enlarged; (3, H, W) in [0, 1].

    Args:
        images_NCHW: Values in [0, 1], one or three channels (others: the first one).
        columns: Images in a row.
        min_side: Pixels to which an image is enlarged by a whole factor.
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


def confusion_picture(
    counts: Tensor, classes: Sequence[str], title: str = "true (rows), predicted (columns)"
) -> Tensor:
    """A confusion matrix as an image: rows are true classes, columns predictions, darker is a larger part of the row.

    Up to 20 classes it has names and counts.

    Args:
        counts: int64, (C, C).
        classes: C names.
        title: What rows and columns are.

    Returns:
        uint8, (3, H, W).
    """
    parts = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    labelled = len(classes) <= LARGEST_TABLE
    cell = 44 if labelled else max(4, 880 // len(classes))
    margin = 110 if labelled else 24
    size = margin + cell * len(classes) + 8
    pixels = np.full((size, size, 3), 255, np.uint8)
    shades = (255 - 205 * parts).astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    pixels[margin : margin + len(shades), margin : margin + len(shades), :2] = shades[:, :, None]
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    draw.text((8, 6), title, fill="black", font=font)
    for row, column in counts.nonzero().tolist() if labelled else ():
        ink = "white" if parts[row, column] > 0.5 else "black"
        centre = margin + (column + 0.5) * cell, margin + (row + 0.5) * cell
        draw.text(centre, str(int(counts[row, column])), fill=ink, font=font, anchor="mm")
    for index, name in enumerate(classes if labelled else ()):
        middle = margin + index * cell + cell / 2
        draw.text((margin - 6, middle), name[:16], fill="black", font=font, anchor="rm")
        draw.text((middle, margin - 6 - 14 * (index % 2)), name[:10], fill="black", font=font, anchor="ms")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
