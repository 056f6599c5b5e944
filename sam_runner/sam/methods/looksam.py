"""LookSAM: every k-th step is SAM's, others reuse its direction (Liu et al., CVPR 2022, arXiv 2203.02714)."""

import torch
from torch import Tensor

from sam_runner.sam.method import Method, StepContext
from sam_runner.sam.methods.interval import Interval
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import divide_radius, is_zero


class LookSam(Interval):
    """Every k-th step is SAM's and keeps u, the unit vector along the part of g_eps that is orthogonal to g.

    The other steps make one pass; their final gradient is g + alpha ||g||_2 u.

    The formulas are those of implementations by others; they were not checked against the paper. No code of the authors
    was found. Disagreement: pytorch-optimizer decomposes each tensor separately. Leminhbinh0209/LookSAM and MSAM's
    baseline decompose the whole gradient, as this class does.

    Sources of the defaults: k 5 and alpha 0.7 are those of implementations by others (Leminhbinh0209/LookSAM).
    According to MSAM's paper, 0.7 is the authors' value for vision transformers. It is too large for convolutional
    networks on CIFAR-100, for which MSAM's authors found 0.1. rho is SAM's.

    Args:
        interval: k, >= 1. k = 1 is SAM.
        alpha: Length of the reused part relative to ||g||, >= 0. alpha = 0 is `Interval`.
        around: Chooses eps. Default: SAM.
    """

    name = "looksam"
    combines = True
    descends_along_g = True
    inner_blocker = "its steps with one pass combine gradients, too"

    def __init__(self, interval: int = 5, alpha: float = 0.7, around: Method | None = None) -> None:
        super().__init__(interval, around)
        self.alpha = alpha

    def prepare(self, objective: Objective) -> None:
        """Start with u = 0."""
        super().prepare(objective)
        self.state["direction"] = [torch.zeros_like(param) for param in objective.params]

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Keep u, or add it."""
        super().combine(final, first, context)
        if is_zero(context.rho):
            length = self.alpha * context.norm(final)
            for target, unit in zip(final, self.state_tensors("direction"), strict=True):
                torch.addcmul(target, unit, length.to(target.dtype), out=target)
        elif first is not None and self.interval > 1:
            ratio = divide_radius(context.dot(final, first), context.dot(first, first))
            part = [target - grad * ratio for target, grad in zip(final, first, strict=True)]
            torch._foreach_mul_(part, divide_radius(1.0, context.norm(part)))
            self.staged["direction"] = part
