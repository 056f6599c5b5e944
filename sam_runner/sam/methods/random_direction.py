"""Perturbation in a random direction instead of the gradient's (Foret et al., arXiv 2010.01412, Appendix C.5)."""

import torch
from torch import Tensor

from sam_runner.sam.method import Group, Method
from sam_runner.sam.perturbation import Perturbation
from sam_runner.utils.seeding import make_generator


class RandomDirection(Method):
    """eps = rho u / ||u||_2 with u standard normal, which is uniform on the sphere.

    u is a function of the seed and the step's number: the same for all groups of a step and on all ranks, whatever the
    memory format of the parameters. The pass at w is made all the same, so statistics, ||g|| and cost are those of SAM.

    Args:
        seed: Seed of the directions.
    """

    name = "random_direction"
    needs_number = True
    capture_blocker = "a random direction is drawn anew in each step"
    shard_blocker = "a random direction does not work with sharded weights"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Write u over `grads` and return eps. All numbers of u are drawn, also where the gradient is zero."""
        context = group.context
        grad_norm = context.norm(grads)
        assert context.number is not None
        draws = make_generator(self.seed, "direction", context.number, device=context.objective.device)
        for grad in grads:
            grad.copy_(torch.randn(grad.shape, generator=draws, dtype=grad.dtype, device=grad.device))
        norm = context.norm(grads)
        scale = context.rho / norm
        return Perturbation(grads, scale, scale * norm, grad_norm)
