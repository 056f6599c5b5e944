"""A page with the images whose labels are most suspicious: one HTML file that loads nothing from elsewhere."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from sam_runner.data.image_sets import ArraySet, ImageFiles, Images, ImageSet
from sam_runner.inference.image_files import make_reader
from sam_runner.inference.suspects import Suspects, suspects_table
from sam_runner.reports.tables import printable

TEMPLATES = Path(__file__).with_name("templates")
NUM_IMAGES = 50
MAX_SIDE = 160  # pixels of an image in the page; smaller images are enlarged by the browser


def render_contact_sheet(suspects: Suspects, images: Images, title: str, note: str) -> str:
    """Return the page as HTML; the template escapes all text.

    Args:
        suspects: The ranking; the first `NUM_IMAGES` images are shown.
        images: The set that it ranks; inputs that are no images have no pictures.
        title: Heading.
        note: A sentence below it.
    """
    rows = suspects_table(suspects).head(NUM_IMAGES).to_dict("records")
    cards = []
    for row, position in zip(rows, suspects.order.tolist(), strict=False):
        name = row.get("path", row.get("index"))
        picture = "" if isinstance(images, ArraySet) else _encode(_pixels(images, position))
        clean = row.get("clean_label", row["label"])
        cards.append(
            {
                "rank": row["rank"],
                "name": printable(str(name)),
                "label": printable(row["label"]),
                "predicted": printable(row["predicted"]),
                "clean": "" if clean == row["label"] else printable(clean),
                "self_confidence": f"{row['self_confidence']:.3g}",
                "confidence": f"{row['confidence']:.3g}",
                "picture": picture,
            }
        )
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    template = environment.get_template("contact_sheet.html")
    return template.render(title=printable(title), note=printable(note), cards=cards)


def _pixels(images: ImageSet | ImageFiles, position: int) -> Tensor:
    """Return one image of a set, uint8, (C, H, W)."""
    if isinstance(images, ImageSet):
        return images.images_NCHW[position]
    return make_reader(images.shape, images.eval_crop_ratio)(images.root / images.paths[position])


def _encode(image_CHW: Tensor) -> str:
    """Return a PNG as a data URL. An image of another number of channels than 1 and 3 is shown by its first channel."""
    pixels: np.ndarray[Any, Any] = image_CHW.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
