"""K-step SAM: eps from several ascent steps (Foret et al., arXiv 2010.01412, Table 11)."""

from dataclasses import replace

import torch
from torch import Tensor

from sam_runner.sam.method import Group
from sam_runner.sam.methods.sam import Sam
from sam_runner.sam.perturbation import Perturbation


class KStep(Sam):
    """eps from `ascent_steps` gradients; 1 is Algorithm 1. All further gradients are evaluated at w + eps.

    Args:
        ascent_steps: Number of gradients that eps is computed from, >= 1.
        projected: How a further step moves. False: on the sphere, eps <- epsilon(grad L(w + eps)). True: it is added
            and the sum projected on the ball, eps <- P(eps + epsilon(grad L(w + eps))); needs p = 2.
        p: Norm of the ball, in [1, inf]; see `sam_runner.sam.perturbation.epsilon`.
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.

    Raises:
        ValueError: If `ascent_steps` is smaller than 1, p is not in [1, inf], or a projected ascent has p other than 2.
    """

    name = "k_step"

    def __init__(
        self, ascent_steps: int, *, projected: bool = False, p: float = 2.0, sync_perturbation: bool = False
    ) -> None:
        super().__init__(p, sync_perturbation=sync_perturbation)
        if ascent_steps < 1:
            raise ValueError(f"ascent_steps={ascent_steps} must be at least 1")
        if projected and p != 2:
            raise ValueError(f"projected ascent needs p=2, not p={p}")
        self.ascent_steps = ascent_steps
        self.projected = projected

    def passes(self, number: int) -> int:
        """Return one pass for each ascent step and one for the final gradient."""
        return 1 + self.ascent_steps

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Return eps after all ascent steps; its ``grad_norm`` is that of the gradient at w."""
        eps = first = super().perturb(grads, group)
        if eps.direction is not grads:
            grads.clear()  # frees the gradient before the next pass
        for _ in range(self.ascent_steps - 1):
            with group.at(eps, keep=self.projected):
                _, grads = group.gradient()
            step = super().perturb(grads, group)
            eps = self._project(eps, step, group) if self.projected else step
        return replace(eps, grad_norm=first.grad_norm)

    @staticmethod
    def _project(eps: Perturbation, step: Perturbation, group: Group) -> Perturbation:
        """Return eps + step, projected on the ball of radius rho."""
        total, before = step.direction, eps.direction  # both are overwritten, so no further memory is needed
        torch._foreach_mul_(total, step.scale)
        torch._foreach_mul_(before, eps.scale)
        torch._foreach_add_(total, before)
        norm = group.context.norm(total)
        scale = (group.context.rho / norm).clamp(max=1.0)
        return Perturbation(total, scale, scale * norm, step.grad_norm)
