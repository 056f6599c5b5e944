"""An interactive page with the surface of a slice: one HTML file that loads nothing from elsewhere."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

TEMPLATE = Path(__file__).with_name("templates") / "surface.html"


def render_surface(table: pd.DataFrame, marks: Sequence[tuple[str, float, float]], title: str, note: str) -> str:
    """Return the page.

    Args:
        table: Points of a complete grid, from `sam_runner.analysis.landscape.evaluate_slice`.
        marks: (label, a, b) of the checkpoints.
        title: Heading.
        note: A sentence about what is shown.
    """
    a, b = (sorted(set(table[axis])) for axis in ("a", "b"))
    layers = {}
    for name, column in (("training loss", "train_loss"), ("test loss", "test_loss")):
        grid = table.pivot(index="b", columns="a", values=column)
        layers[name] = [[_number(value) for value in row] for row in grid.to_numpy()]
    data: dict[str, Any] = {"a": a, "b": b, "layers": layers, "marks": [list(mark) for mark in marks]}
    page = TEMPLATE.read_text(encoding="utf-8")
    inside = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    for key, value in (("TITLE", html.escape(title)), ("NOTE", html.escape(note)), ("DATA", inside)):
        page = page.replace(f"{{{{{key}}}}}", value)
    return page


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
