"""Eigenvalues of a symmetric operator by Lanczos with full re-orthogonalisation.

Every new vector is orthogonalised twice against the whole basis, so eigenvalues do not appear as spurious copies, as
they do with the three-term recurrence in floating point (Golub and Van Loan, Matrix Computations, section 10.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam_runner.utils.seeding import make_generator

Product = Callable[[Tensor], Tensor]
BREAKDOWN = 1e-6  # of float32; a residual that is smaller relative to the operator is rounding
ROUNDING = 1e-5  # of a product in float32, relative to the largest absolute eigenvalue
OF_ITSELF = 0.02  # largest residual of an eigenvalue that is much smaller than the largest one, relative to itself
MIN_PRODUCTS = 10  # a random start is nearly in the null space of a large Hessian, which looks converged at first
FURTHER_PRODUCTS = 8  # that look for copies; 7 were needed at most in 48 trials (n = 66,000; no script repeats them)
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

    Products of one start see one vector of each eigenspace. So after convergence with k > 1, a random vector that is
    orthogonal to the eigenvectors starts `FURTHER_PRODUCTS` further ones. If they find a larger eigenvalue, a copy of
    one that is known, say, the iteration goes on.

    Args:
        product: v -> A v for v of shape (n,).
        start: Any non-zero vector, (n,): floating point, not orthogonal to the eigenvectors.
        k: Number of eigenvalues, in [1, n].
        tolerance: Bound of the residuals, relative to the largest eigenvalue. The error of an eigenvalue that is
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
    krylov = _Krylov(start, size=min(n, max(max_basis, k + 2)))
    generator = make_generator(seed, "lanczos")
    num_products, is_replaced, first = 0, False, k + MIN_PRODUCTS  # `first`: products before the first test
    known: Eigenvalues | None = None
    while True:
        ritz = krylov.multiply(product)
        num_products += 1
        top = range(krylov.count - 1, max(krylov.count - 1 - k, -1), -1)
        values, residuals = ([float(part[i]) for i in top] for part in (ritz.values, ritz.residuals))
        is_early = krylov.count < k or (ritz.beta > 0 and num_products < first)
        if known is not None and not is_early and not _is_larger(values, known, tolerance):
            return replace(known, num_products=num_products)
        is_complete = not is_early and _are_complete(ritz, top, tolerance, is_replaced=is_replaced)
        found = Eigenvalues(values, residuals, num_products, is_complete or krylov.count == n)
        is_certain = k == 1 or ritz.beta == 0 or krylov.count == n
        if num_products >= max_products or (found.converged and is_certain):
            return found
        if found.converged:
            krylov.restart(ritz, k)
            known, first = found, num_products + FURTHER_PRODUCTS
        elif krylov.count == krylov.size:
            krylov.restart(ritz, min(k + (krylov.size - k) // 2, krylov.size - 1))
        is_replaced = ritz.beta == 0
        beta = 0.0 if found.converged else ritz.beta
        krylov.append(_next_vector(ritz.direction, beta, krylov.vectors, generator))


@dataclass(frozen=True)
class _Ritz:
    """Eigenvalues of the operator projected on a basis of m vectors.

    Attributes:
        values: Ascending, float64, (m,).
        coefficients: Eigenvectors in the basis, float64, (m, m), in columns.
        newest: v^T A v of the newest basis vector v.
        direction: The part of A v that is orthogonal to the basis, (n,).
        beta: Norm of `direction`, 0 where it is rounding.
    """

    values: Tensor
    coefficients: Tensor
    newest: float
    direction: Tensor
    beta: float

    @property
    def scale(self) -> float:
        """The largest absolute eigenvalue."""
        return float(self.values.abs().max())

    @property
    def residuals(self) -> Tensor:
        """||A y - theta y|| of each eigenvector y, float64, (m,)."""
        return (self.beta * self.coefficients[-1]).abs()


class _Krylov:
    """An orthonormal basis that grows by products of an operator, and the operator projected on it.

    Args:
        start: First vector, (n,), not normalised.
        size: Largest number of vectors.

    Attributes:
        count: Number of vectors.
    """

    def __init__(self, start: Tensor, size: int) -> None:
        self.size, self.count = size, 1
        self._basis = torch.empty(size, len(start), dtype=start.dtype, device=start.device)
        self._projected = torch.zeros(size, size, dtype=torch.float64)
        self._basis[0] = start / start.norm()

    @property
    def vectors(self) -> Tensor:
        """The basis, (count, n)."""
        return self._basis[: self.count]

    def multiply(self, product: Product) -> _Ritz:
        """Multiply the newest vector by the operator; returns the eigenvalues on the basis."""
        newest, count = self.count - 1, self.count
        column, direction = _orthogonalise(product(self._basis[newest]), self.vectors)
        self._projected[:count, newest] = self._projected[newest, :count] = column
        values, coefficients = torch.linalg.eigh(self._projected[:count, :count])
        scale, beta = float(values.abs().max()), float(direction.double().norm())
        is_rounding = beta <= BREAKDOWN * scale or scale == 0
        return _Ritz(values, coefficients, float(column[-1]), direction, 0.0 if is_rounding else beta)

    def restart(self, ritz: _Ritz, kept: int) -> None:
        """Replace the basis by the eigenvectors of the `kept` largest eigenvalues."""
        self._basis[:kept] = ritz.coefficients[:, -kept:].T.to(self._basis) @ self.vectors
        self._projected.zero_()
        self._projected[range(kept), range(kept)] = ritz.values[-kept:]
        self.count = kept

    def append(self, vector: Tensor) -> None:
        """Append a unit vector that is orthogonal to the basis."""
        self._basis[self.count] = vector
        self.count += 1


def _are_complete(ritz: _Ritz, top: range, tolerance: float, *, is_replaced: bool) -> bool:
    """Return whether the eigenvalues at the positions `top` are the largest ones of the operator, and exact enough.

    The residual of an eigenvalue that is less than 50 times the tolerance is bounded by `OF_ITSELF` of it, but not
    below a tenth of the tolerance. Where the most negative eigenvalue is far larger in absolute value, the bound is at
    least the rounding of the products.
    """
    if ritz.beta > 0:
        least, largest = min(tolerance, ROUNDING) * ritz.scale, tolerance * abs(float(ritz.values[top[0]]))
        bounds = [max(min(largest, max(OF_ITSELF * abs(float(ritz.values[i])), largest / 10)), least) for i in top]
        return all(float(ritz.residuals[i]) <= bound for i, bound in zip(top, bounds, strict=True))
    # An invariant subspace may lack copies of an eigenvalue. But if a random vector is an eigenvector, so is every
    # vector that is orthogonal to the basis.
    return is_replaced and float(ritz.values[top[-1]]) >= ritz.newest - BREAKDOWN * ritz.scale


def _is_larger(values: list[float], known: Eigenvalues, tolerance: float) -> bool:
    """Return whether one of the eigenvalues is above the known one at its place by more than the tolerance."""
    bound = tolerance * abs(known.values[0])
    return any(value > old + bound for value, old in zip(values, known.values, strict=True))


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
    unit: Tensor = direction / direction.norm(dtype=torch.float64)  # squares of small numbers are 0 in float32
    return unit


def asymmetry(product: Product, first: Tensor, second: Tensor) -> float:
    """Return |u.Av - v.Au| relative to the usual size of u.Av, for two random vectors u and v.

    It is rounding for a symmetric A. For the second derivatives of a network it is about the norm of their error
    relative to the Hessian's, if an operation has wrong ones; no wrong part that is symmetric is found.

    Args:
        product: v -> A v for v of shape (n,).
        first: u, (n,), of length 1; for example random signs divided by their norm.
        second: v, (n,), likewise.
    """
    products = [product(vector).double() for vector in (first, second)]
    difference = float(first.double() @ products[1] - second.double() @ products[0])
    size = float(products[0].norm() * products[1].norm()) ** 0.5 / len(first) ** 0.5
    return abs(difference) / size if size else 0.0


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
        basis[count] = direction / direction.norm(dtype=torch.float64)
    values, vectors = torch.linalg.eigh(projected[:count, :count])
    return values, vectors[0].square()
