"""WSAM: sharpness as a weighted term of the loss (Yue, Jiang, Ye, Gao, Liu and Zhang, KDD 2023, arXiv 2305.15817)."""

import torch
from torch import Tensor

from sam_runner.distributed.sharding import to_local
from sam_runner.sam.method import Method, StepContext
from sam_runner.sam.methods.around import Around


class Wsam(Around):
    """Minimise L(w) + c (L(w + eps) - L(w)) with c = gamma / (1 - gamma).

    Coupled: the final gradient is (1 - c) g + c g_eps. Decoupled: the base optimizer steps along g, and then
    w <- w - lr c (g_eps - g), so momentum and preconditioning do not see the sharpness.

    Source of the defaults: the authors' code (intelligent-machine-learning/dlrover), rho 0.05, decoupled. Its page and
    one version of the class have gamma 0.9 and no clipping, as here; the other version has gamma 0.88 and clips both
    gradients to norm 1. ``grad_clip`` clips what the base optimizer gets: g in decoupled WSAM.

    Args:
        gamma: Weight of the sharpness, in [0, 1). 0 is the base optimizer. 1/2 is SAM if coupled; decoupled it is SAM
            only for SGD without momentum.
        decoupled: Whether the sharpness is added after the base optimizer's step.
        around: Chooses eps. Default: SAM.
    """

    name = "wsam"
    combines = True
    descends_along_g = True

    def __init__(self, gamma: float = 0.9, *, decoupled: bool = True, around: Method | None = None) -> None:
        super().__init__(around)
        self.weight = gamma / (1 - gamma)
        self.decoupled = decoupled

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Combine both gradients, or stage c (g_eps - g) for `commit`."""
        super().combine(final, first, context)
        if first is None:
            return
        if not self.decoupled:
            for target, grad in zip(final, first, strict=True):
                target.mul_(self.weight).add_(grad, alpha=1 - self.weight)
            return
        factor = self.weight / context.loss_scale
        self.staged["sharpness"] = [(target - grad) * factor for target, grad in zip(final, first, strict=True)]
        for target, grad in zip(final, first, strict=True):
            target.copy_(grad)

    def commit(self, finite: Tensor, context: StepContext) -> None:
        """Step along the sharpness, if the step is finite, after the base optimizer's step."""
        sharpness = self.staged.pop("sharpness", [])  # no state
        super().commit(finite, context)
        if not sharpness:
            return
        rates = {id(param): group["lr"] for group in context.optimizer.param_groups for param in group["params"]}
        skip = ~finite.all()
        with torch.no_grad():
            for param, part in zip(context.params, sharpness, strict=True):
                to_local(param).sub_((part * rates[id(param)]).masked_fill_(skip, 0.0))
