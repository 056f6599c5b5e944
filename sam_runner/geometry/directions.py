"""Directions of slices through the loss: filter-normalised random ones, and the plane through three points."""

from typing import NamedTuple

import torch
from torch import Tensor

from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.utils.seeding import make_generator


class Plane(NamedTuple):
    """A plane (or a line, if `second` is None): the points origin + a first + b second.

    Attributes:
        origin: (n,).
        first: (n,).
        second: (n,), or None.
    """

    origin: Tensor
    first: Tensor
    second: Tensor | None

    def point(self, a: float, b: float = 0.0) -> Tensor:
        """Return the weights at the coordinates (a, b), (n,)."""
        weights = self.origin + a * self.first
        return weights if self.second is None else weights + b * self.second


def draw_filter_normalised_direction(loss: MeanLoss, number: int, seed: int = 0) -> Tensor:
    """Return a random direction whose filters have the norms of the network's filters, (n,).

    Li, Xu, Taylor, Studer and Goldstein (NeurIPS 2018, arXiv 1712.09913), section 4: d_ij <- d_ij / ||d_ij|| ||w_ij||
    for filter j of layer i. A filter is an entry of a parameter's first axis (one output channel or unit). Biases and
    the parameters of normalisation layers, which have one axis, do not move.

    Args:
        loss: Gives the weights.
        number: Number of the direction; different ones are independent.
        seed: Seed of the directions.
    """
    generator, parts = make_generator(seed, "direction", number), []
    for param in loss.parameters:
        draw = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param)
        if param.ndim < 2:
            parts.append(torch.zeros_like(param).flatten())
            continue
        rows, drawn = param.flatten(1), draw.flatten(1)
        parts.append((drawn * (rows.norm(dim=1) / drawn.norm(dim=1))[:, None]).flatten())
    return torch.cat(parts)


def plane_through(first: Tensor, second: Tensor, third: Tensor) -> tuple[Plane, list[tuple[float, float]]]:
    """Return the plane through three points with orthonormal axes, and the coordinates of the points in it.

    Args:
        first: Origin, (n,).
        second: Point on the first axis, (n,).
        third: (n,).

    Raises:
        ValueError: If the points are on one line.
    """
    a, b = second - first, third - first
    length = a.double().norm()
    axis = (a / length).to(a) if length else a
    along = float((axis.double() * b.double()).sum())
    rest = b - along * axis
    height = rest.double().norm()
    if not length or float(height) <= 1e-6 * float(b.double().norm()):
        raise ValueError("the three points are on one line")
    return Plane(first, axis, (rest / height).to(rest)), [(0.0, 0.0), (float(length), 0.0), (along, float(height))]
