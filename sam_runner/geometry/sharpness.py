"""Sharpness: how much the loss rises in a neighbourhood of the weights.

With a function L and a scale c (1 for every weight, or |w|), the measures are

    worst case   max over ||e / c||_2 <= rho of L(w + e) - L(w)
    average      mean over e / c uniform on the sphere of radius rho of L(w + e) - L(w)

c = |w| elementwise is adaptive sharpness (Kwon et al., ICML 2021; Andriushchenko et al., ICML 2023, arXiv 2302.07011):
it does not change if the weights of a ReLU network are rescaled without a change of the network's function. m-sharpness
(Foret et al., arXiv 2010.01412, section 4.1) is the mean over groups of m examples of the worst case of each group.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.utils.seeding import make_generator

Gradient = Callable[[Tensor], tuple[float, Tensor]]
MIN_STEP = 1 / 64


@dataclass(frozen=True)
class Average:
    """A mean over random directions or groups of examples.

    Attributes:
        value: Mean rise of the loss.
        standard_error: Standard error of the mean; 0 for one direction or group.
    """

    value: float
    standard_error: float


def worst_case(
    gradient: Gradient,
    weights: Tensor,
    rho: float,
    *,
    num_steps: int = 10,
    num_restarts: int = 1,
    scale: Tensor | None = None,
    seed: int = 0,
) -> float:
    """Return the largest rise of the loss that projected gradient ascent finds; a lower bound of the maximum.

    With u = e / c, a step is u <- P(u + step rho g_u / ||g_u||), where g_u = c g is the gradient by u and P projects on
    the ball. The first start is the solution of eq. 2, u = rho g_u / ||g_u||. A step that does not raise the loss is
    undone, and the further ones have half its length. The result is NaN if a loss or a gradient on the way is not
    finite.

    Args:
        gradient: w -> (L(w), gradient (n,)).
        weights: w, (n,).
        rho: Radius of the ball, > 0.
        num_steps: Number of gradients of each ascent, >= 1. With 1, the result is that of eq. 2.
        num_restarts: Number of further ascents that start at random points of the sphere.
        scale: c, (n,), not negative; None: 1 for every weight.
        seed: Seed of the random starts.
    """
    c = torch.ones_like(weights) if scale is None else scale
    base, at_w = gradient(weights)
    generator, rises = make_generator(seed, "worst case"), [0.0]
    for restart in range(num_restarts + 1):
        u = c * at_w
        if restart or not _norm(u):
            u = _random_direction(weights, generator)
        rises.append(_ascend(gradient, weights, c, u * (rho / _norm(u)), rho, num_steps) - base)
    return max(rises) if all(map(math.isfinite, rises)) else math.nan


def _ascend(gradient: Gradient, weights: Tensor, c: Tensor, u: Tensor, rho: float, num_steps: int) -> float:
    """Return the largest loss on the path of one ascent from the point w + c u; NaN if one of them is not finite."""
    step, (loss, grad) = 1.0, gradient(weights + c * u)
    for _ in range(num_steps - 1):
        direction = c * grad
        norm = _norm(direction)
        if not math.isfinite(loss) or not math.isfinite(norm):
            return math.nan
        if norm == 0 or step < MIN_STEP:
            break
        moved = u + direction * (step * rho / norm)
        moved = moved * (rho / max(rho, float(moved.norm())))  # may be 0: a step straight back
        new_loss, new_grad = gradient(weights + c * moved)
        if new_loss > loss or not math.isfinite(new_loss):
            u, loss, grad = moved, new_loss, new_grad
        else:
            step /= 2
    return loss if math.isfinite(loss) else math.nan


def average_case(
    value: Callable[[Tensor], float],
    weights: Tensor,
    rho: float,
    *,
    num_directions: int = 10,
    scale: Tensor | None = None,
    seed: int = 0,
) -> Average:
    """Return the mean rise of the loss over random directions of length rho, in pairs e and -e.

    The mean of a pair has no first-order term, which would only add noise. For a quadratic loss and scale 1, the mean
    is rho^2 / 2 times the mean eigenvalue of the Hessian.

    Args:
        value: w -> L(w).
        weights: w, (n,).
        rho: Length of e / c, > 0.
        num_directions: Number of pairs, >= 1.
        scale: c, (n,); None: 1 for every weight.
        seed: Seed of the directions.
    """
    c = torch.ones_like(weights) if scale is None else scale
    base, generator, rises = value(weights), make_generator(seed, "average case"), []
    for _ in range(num_directions):
        u = _random_direction(weights, generator)
        e = c * u * (rho / u.norm())
        rises.append((value(weights + e) + value(weights - e)) / 2 - base)
    return _average(rises)


def m_sharpness(loss: MeanLoss, m: int, rho: float, *, num_steps: int = 1, max_groups: int = 16) -> Average:
    """Return the mean over groups of `m` examples of the worst case of each group.

    Groups are consecutive examples; a remainder of fewer than m is left out. Where there are more than `max_groups`,
    the groups are spread evenly over the examples.

    Args:
        loss: L of all examples.
        m: Examples of a group, in [1, number of examples].
        rho: Radius, > 0.
        num_steps: Gradients of each ascent; 1 is eq. 2, the perturbation of a training step.
        max_groups: Largest number of groups.

    Raises:
        ValueError: If there are fewer than m examples.
    """
    num_groups = loss.num_examples // m
    if not num_groups:
        raise ValueError(f"m={m} is larger than the number of examples, {loss.num_examples}")
    count = min(num_groups, max_groups)
    values = []
    for number in range(count):
        start = number * num_groups // count * m
        group = loss.part(start, start + m)
        values.append(worst_case(group.gradient, loss.weights, rho, num_steps=num_steps, num_restarts=0))
    return _average(values)


def _average(values: list[float]) -> Average:
    found = torch.tensor(values, dtype=torch.float64)
    return Average(float(found.mean()), float(found.std()) / len(found) ** 0.5 if len(found) > 1 else 0.0)


def _norm(vector: Tensor) -> float:
    """Return the norm of a vector, (n,), in float64: in float32 the squares of numbers below 1e-22 are 0."""
    return float(vector.norm(dtype=torch.float64))


def _random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
