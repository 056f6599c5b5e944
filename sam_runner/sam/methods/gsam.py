"""GSAM: also minimise the surrogate gap L(w + eps) - L(w) (Zhuang et al., ICLR 2022, arXiv 2203.08065, Algorithm 1)."""

from torch import Tensor

from sam_runner.sam.method import Method, StepContext
from sam_runner.sam.methods.around import Around
from sam_runner.sam.perturbation import divide_radius, is_zero


class Gsam(Around):
    """The final gradient is g_eps - alpha h, where h is the part of g that is orthogonal to g_eps.

    The radius follows the learning rate: rho_t = rho_min + (rho - rho_min) (lr_t - lr_min) / (lr_max - lr_min), with
    the fraction in [0, 1].

    Disagreement: in data-parallel training the authors' code (juntang-zhuang/GSAM) decomposes the gradients of each
    process and adds them up; here the means are decomposed. Their JAX code (big_vision) does not bound the fraction, so
    that the radius is below rho_min while the learning rate warms up. Sources of the defaults: alpha 0.4 is that of
    pytorch-optimizer, between the authors' examples: 0.2 for CIFAR-10 (rho constant, with ASAM's scaling) and 0.6 for
    ViT-B/32 (rho from 0.6 to 0.1). rho_min 0 is ours.

    Args:
        alpha: Weight of the surrogate gap, >= 0. alpha = 0 with a constant radius is SAM.
        rho_min: Radius at the smallest learning rate, >= 0; the caller's rho is the radius at the largest.
        lr_max: Largest learning rate; None: the radius is constant.
        lr_min: Smallest learning rate.
        around: Chooses eps. Default: SAM.
    """

    name = "gsam"
    combines = True
    descends_along_g = True

    def __init__(
        self,
        alpha: float = 0.4,
        rho_min: float = 0.0,
        lr_max: float | None = None,
        lr_min: float = 0.0,
        around: Method | None = None,
    ) -> None:
        super().__init__(around)
        self.alpha, self.rho_min, self.lr_max, self.lr_min = alpha, rho_min, lr_max, lr_min

    def radius(self, rho: float | Tensor, number: int | None, lr: float) -> float | Tensor:
        """Return rho_t; 0 in a step in which the other method makes one pass."""
        rho = self.around.radius(rho, number, lr)
        if is_zero(rho) or self.lr_max is None or self.lr_max <= self.lr_min:
            return rho
        fraction = min(max((lr - self.lr_min) / (self.lr_max - self.lr_min), 0.0), 1.0)
        return self.rho_min + (rho - self.rho_min) * fraction

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Subtract alpha h."""
        super().combine(final, first, context)
        if first is None:
            return
        ratio = divide_radius(context.dot(first, final), context.dot(final, final))
        for target, grad in zip(final, first, strict=True):
            target.mul_(1 + self.alpha * ratio).sub_(grad, alpha=self.alpha)
