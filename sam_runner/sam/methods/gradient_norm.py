"""Gradient-norm penalty (Zhao, Zhang and Hu, ICML 2022, arXiv 2202.03599, eq. 10)."""

from torch import Tensor

from sam_runner.sam.method import Method, StepContext
from sam_runner.sam.methods.around import Around


class GradientNorm(Around):
    """The final gradient is (1 - alpha) g + alpha g_eps: the gradient of L(w) + alpha rho ||grad L(w)|| to first order.

    Disagreement: the authors' code (zhaoyang-0204/gnp) has a flag, on by default, that replaces g in this mean by
    g / ||g||; the paper's equation is followed. Sources of the defaults: alpha 0.8 is that of the authors' recipe for
    CIFAR-10, which has rho (its r) 0.1; rho here is SAM's 0.05.

    Args:
        alpha: Weight of g_eps, in [0, 1]. 0 is the base optimizer's gradient, 1 is SAM.
        around: Chooses eps. Default: SAM.
    """

    name = "gradient_norm"
    combines = True
    descends_along_g = True

    def __init__(self, alpha: float = 0.8, around: Method | None = None) -> None:
        super().__init__(around)
        self.alpha = alpha

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Take the weighted mean of both gradients."""
        super().combine(final, first, context)
        if first is not None:
            for target, grad in zip(final, first, strict=True):
                target.mul_(self.alpha).add_(grad, alpha=1 - self.alpha)
