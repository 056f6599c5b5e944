"""Plots are prepared in every test, but drawn only in the tests that look at them: drawing takes a second for each."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from matplotlib.figure import Figure

PRETENDED = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<svg></svg>", "pdf": b"%PDF"}


def leave_plots_undrawn():
    """Replace the two slow methods of matplotlib's figures in this process."""
    if not hasattr(Figure, "originals"):  # else a child of tests/mutants
        Figure.originals = {name: getattr(Figure, name) for name in ("savefig", "draw_without_rendering")}
        Figure.savefig, Figure.draw_without_rendering = _pretend, lambda self: None


@contextmanager
def draw_plots():
    """Let matplotlib draw inside the body."""
    with pytest.MonkeyPatch.context() as patch:
        for name, method in Figure.originals.items():
            patch.setattr(Figure, name, method)
        yield


def _pretend(figure, place, *, format=None, **options):
    """Write a few bytes where a picture would be."""
    content = PRETENDED[format or Path(place).suffix[1:]]
    if hasattr(place, "write"):
        place.write(content)
    else:
        Path(place).write_bytes(content)
