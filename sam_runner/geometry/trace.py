"""The trace of a symmetric operator by Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA 2021, algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.utils.seeding import make_generator

Products = Callable[[Sequence[Tensor]], list[Tensor]]
AT_ONCE = 8  # vectors that are multiplied together


@dataclass(frozen=True)
class Trace:
    """An unbiased estimate of a trace.

    Attributes:
        value: The estimate.
        standard_error: Standard error of the estimate, from the spread of its random terms.
    """

    value: float
    standard_error: float


def estimate_trace(products: Products, like: Tensor, num_products: int, *, seed: int = 0) -> Trace:
    """Estimate tr(A).

    A third of the products finds Q, a basis of about the subspace of the eigenvectors with the largest eigenvalues. A
    third gives tr(Q^T A Q) exactly. A third estimates the trace of the rest, (I - Q Q^T) A (I - Q Q^T), from random
    vectors of signs (Hutchinson).

    Args:
        products: Maps at most `AT_ONCE` vectors (n,) to their products A v.
        like: A vector (n,) whose dtype and device the vectors have.
        num_products: Number of products, at least 6; it is rounded down to a multiple of 3.
        seed: Seed of the random vectors.

    Raises:
        ValueError: If `num_products` is less than 6: two random terms are needed for a standard error.
    """
    if num_products < 6:
        raise ValueError(f"{num_products} products are too few for Hutch++: accepted are at least 6")
    third, n = num_products // 3, len(like)
    generator = make_generator(seed, "trace")

    def multiply(vectors: Tensor) -> Tensor:
        parts = [products(list(rows)) for rows in vectors.split(AT_ONCE)]
        return torch.stack([row for part in parts for row in part])

    sketch = multiply(random_signs(third, like, generator))
    basis = torch.linalg.qr(sketch.T).Q.T  # (min(third, n), n)
    del sketch
    in_range = (basis.double() * multiply(basis).double()).sum()
    count = third if len(basis) < n else 0  # nothing is left where Q spans the whole space
    if not count:
        return Trace(float(in_range), 0.0)
    probes = random_signs(count, like, generator)
    for _ in range(2):
        probes = probes - (probes @ basis.T) @ basis
    terms = (probes.double() * multiply(probes).double()).sum(1)
    error = terms.std() / count**0.5
    return Trace(float(in_range + terms.mean()), float(error))


def random_signs(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return `count` vectors of entries -1 and 1 with equal probability, (count, n), on the device of `like`."""
    signs = torch.randint(0, 2, (count, len(like)), generator=generator, dtype=torch.int8)
    return signs.to(like.device, like.dtype).mul_(2).sub_(1)
