"""The density of the eigenvalues of a symmetric operator by stochastic Lanczos quadrature.

Ubaru, Chen and Saad (SIAM J. Matrix Anal. Appl. 2017); for Hessians of networks Ghorbani, Krishnan and Xiao (ICML
2019). For a random vector v, v^T f(A) v / v^T v has the mean tr f(A) / n, the mean of f over the eigenvalues. Lanczos
from v gives nodes and weights that integrate f.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.geometry.lanczos import Product, quadrature

WIDTH = 0.005  # of a smoothed eigenvalue, as a fraction of the range of the nodes


@dataclass(frozen=True)
class Density:
    """A discrete approximation of the density of eigenvalues.

    Attributes:
        nodes: Eigenvalues, float64, (m,), ascending.
        weights: Share of the eigenvalues at each node, float64, (m,); they add up to 1.
    """

    nodes: Tensor
    weights: Tensor

    def smooth(self, num_points: int = 1001) -> tuple[Tensor, Tensor]:
        """Return the density on a grid, as a sum of normal curves of standard deviation `WIDTH`.

        Args:
            num_points: Number of points of the grid.

        Returns:
            Eigenvalues and density (per unit of the eigenvalue), float64, (num_points,). The density integrates to 1.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        sigma = WIDTH * max(high - low, 1e-9 + 1e-6 * abs(high))
        grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, num_points, dtype=torch.float64)
        curves = torch.exp(-0.5 * ((grid[:, None] - self.nodes) / sigma) ** 2) / (sigma * (2 * torch.pi) ** 0.5)
        return grid, curves @ self.weights


def density_of_probes(product: Product, probes: Sequence[Tensor], num_steps: int) -> Density:
    """Return the mean density of given probes, (n,) each.

    With all n unit vectors of an orthonormal basis as probes, the sums of weights * nodes^k are exact for k up to
    2 `num_steps` - 1; n times the sum for k = 1 is the trace.
    """
    parts = [quadrature(product, probe, num_steps) for probe in probes]
    nodes = torch.cat([nodes for nodes, _ in parts])
    weights = torch.cat([weights for _, weights in parts]) / len(parts)
    order = nodes.argsort()
    return Density(nodes[order], weights[order])
