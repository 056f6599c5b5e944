"""Eigenvalues of a symmetric operator by Lanczos with full re-orthogonalisation.

Every new vector is orthogonalised twice against the whole basis, so eigenvalues do not appear as spurious copies, as
they do with the three-term recurrence in floating point (Golub and Van Loan, Matrix Computations, section 10.3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.utils.seeding import make_generator

Product = Callable[[Tensor], Tensor]
BREAKDOWN = 1e-6  # of float32; a residual that is smaller relative to the operator is rounding
MAX_BASIS = 48


@dataclass(frozen=True)
class Eigenvalues:
    """The largest eigenvalues of an operator.

    Attributes:
        values: Eigenvalues, descending.
        residuals: ||A y - theta y|| of each; an eigenvalue of A is within this distance.
        num_products: Number of products A v.
        converged: Whether all residuals are below the tolerance.
    """

    values: list[float]
    residuals: list[float]
    num_products: int
    converged: bool


def largest_eigenvalues(
    product: Product,
    start: Tensor,
    k: int,
    *,
    tolerance: float = 1e-3,
    max_products: int = 300,
    max_basis: int = MAX_BASIS,
    seed: int = 0,
) -> Eigenvalues:
    """Return the `k` largest (most positive) eigenvalues of a symmetric operator, with multiplicity.

    Thick-restart Lanczos (Wu and Simon, 2000): when the basis is full, the best Ritz vectors start the next one, so
    memory is `max_basis` vectors.

    Args:
        product: v -> A v for v of shape (n,).
        start: Any non-zero vector, (n,): floating point, not orthogonal to the eigenvectors.
        k: Number of eigenvalues, in [1, n].
        tolerance: Bound of the residuals, relative to the largest |Ritz value|. The error of an eigenvalue that is
            separated from the others is about the square of its relative residual.
        max_products: Largest number of products.
        max_basis: Largest number of vectors that are kept, at least k + 2 unless n is smaller.
        seed: Seed of the vectors that replace the start where its invariant subspace is exhausted.

    Raises:
        ValueError: If k is not in [1, n].
    """
    n = len(start)
    if not 1 <= k <= n:
        raise ValueError(f"k={k} eigenvalues of {n} weights: accepted are 1 to {n}")
    size = min(n, max(max_basis, k + 2))
    basis = torch.empty(size, n, dtype=start.dtype, device=start.device)
    projected = torch.zeros(size, size, dtype=torch.float64)
    basis[0] = start / start.norm()
    generator = make_generator(seed, "lanczos")
    count, num_products, is_replaced = 1, 0, False
    while True:
        direction = product(basis[count - 1])
        num_products += 1
        column, direction = _orthogonalise(direction, basis[:count])
        projected[:count, count - 1] = projected[count - 1, :count] = column
        values, vectors = torch.linalg.eigh(projected[:count, :count])
        scale, beta = float(values.abs().max()), float(direction.double().norm())
        if beta <= BREAKDOWN * scale or scale == 0:
            beta = 0.0
        residuals = (beta * vectors[-1]).abs()
        top = range(count - 1, max(count - 1 - k, -1), -1)
        if beta > 0:
            is_complete = all(float(residuals[i]) <= tolerance * scale for i in top)
        else:
            # An invariant subspace may lack copies of an eigenvalue. But if a random vector is an eigenvector, so is
            # every vector that is orthogonal to the basis.
            is_complete = is_replaced and float(values[top[-1]]) >= float(column[-1]) - BREAKDOWN * scale
        converged = count == n or (count >= k and is_complete)
        if converged or num_products >= max_products:
            return Eigenvalues(
                [float(values[i]) for i in top], [float(residuals[i]) for i in top], num_products, converged
            )
        if count == size:
            kept = min(k + (size - k) // 2, size - 1)
            basis[:kept] = vectors[:, -kept:].T.to(basis) @ basis
            projected.zero_()
            projected[range(kept), range(kept)] = values[-kept:]
            count = kept
        is_replaced = beta == 0
        basis[count] = _next_vector(direction, beta, basis[:count], generator)
        count += 1


def _orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a vector in an orthonormal basis (m, n), float64, and what is orthogonal to it."""
    total = torch.zeros(len(basis), dtype=torch.float64)
    for _ in range(2):
        part = basis @ vector
        vector = vector - basis.T @ part
        total += part.double().cpu()
    return total, vector


def _next_vector(direction: Tensor, beta: float, basis: Tensor, generator: torch.Generator) -> Tensor:
    """Return the next unit vector: the direction, or a random one where nothing is left of it."""
    if beta == 0:
        direction = torch.randn(direction.shape, generator=generator, dtype=direction.dtype).to(direction.device)
        _, direction = _orthogonalise(direction, basis)
    unit: Tensor = direction / direction.norm()
    return unit


def quadrature(product: Product, start: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return the nodes and weights of the Gauss quadrature of v^T f(A) v that Lanczos from v / ||v|| gives.

    It is exact for polynomials f of degree 2 `num_steps` - 1 (Golub and Meurant, 2010).

    Args:
        product: v -> A v for v of shape (n,).
        start: v, (n,), non-zero.
        num_steps: Number of products, >= 1; fewer are made where the subspace is exhausted.

    Returns:
        Nodes (m,) and weights (m,), float64; the weights add up to 1.
    """
    size = min(num_steps, len(start))
    basis = torch.empty(size, len(start), dtype=start.dtype, device=start.device)
    projected = torch.zeros(size, size, dtype=torch.float64)
    basis[0] = start / start.norm()
    for count in range(1, size + 1):
        column, direction = _orthogonalise(product(basis[count - 1]), basis[:count])
        projected[:count, count - 1] = projected[count - 1, :count] = column
        beta = float(direction.double().norm())
        is_exhausted = beta <= BREAKDOWN * float(projected[:count, :count].abs().max())
        if count == size or is_exhausted:
            break
        basis[count] = direction / direction.norm()
    values, vectors = torch.linalg.eigh(projected[:count, :count])
    return values, vectors[0].square()
