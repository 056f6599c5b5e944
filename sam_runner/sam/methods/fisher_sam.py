"""Fisher SAM: the ball of the Fisher metric (Kim, Li, Hu and Hospedales, ICML 2022, arXiv 2206.04920)."""

import torch
from torch import Tensor

from sam_runner.sam.method import Group, Method
from sam_runner.sam.perturbation import Perturbation, divide_radius


class FisherSam(Method):
    """eps = rho F^-1 g / sqrt(g . F^-1 g) with F = 1 + eta g^2 elementwise, so sqrt(eps . F eps) = rho.

    F approximates the Fisher matrix: it is diagonal, has squared batch gradients instead of squared gradients of the
    log-likelihood, and 1 is added so that it has an inverse.

    The formulas are those of implementations by others; they were not checked against the paper. No code of the authors
    was found. Disagreement: in two implementations eps has the length rho in the Fisher metric; in one ||eps||_2 = rho.

    Sources of the defaults: rho 0.1 (called gamma there) and eta 1 are those of the two implementations with the Fisher
    metric. A third (SungJun98/SA-BMA) has rho 0.05 and eta 0.1.

    Args:
        eta: Weight of the squared gradient, >= 0. eta = 0 is SAM.
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.
    """

    name = "fisher_sam"

    def __init__(self, eta: float = 1.0, *, sync_perturbation: bool = False) -> None:
        super().__init__()
        self.eta = eta
        self.sync_perturbation = sync_perturbation
        self.shard_blocker = "" if sync_perturbation else "sharded weights need sync_perturbation=True"

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Return eps; its direction F^-1 g is new memory."""
        context = group.context
        weight = self.eta / context.loss_scale.square()
        direction = [grad / (1 + weight * grad.square()).to(grad.dtype) for grad in grads]
        scale = divide_radius(context.rho, torch.sqrt(context.dot(grads, direction)))
        return Perturbation(direction, scale, scale * context.norm(direction), context.norm(grads))
