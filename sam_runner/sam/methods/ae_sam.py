"""AE-SAM: SAM where the gradient is large (Jiang, Yang, Zhang and Kwok, ICLR 2023, arXiv 2304.14647)."""

import torch
from torch import Tensor

from sam_runner.sam.method import Group, GroupStats, Method, StepContext
from sam_runner.sam.methods.around import Around
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import Perturbation


class AeSam(Around):
    """A step makes its second pass if ||g||^2 >= mu_t + c_t sigma_t.

    mu_t = delta mu_(t-1) + (1 - delta) ||g||^2 and sigma_t^2 = delta sigma_(t-1)^2 + (1 - delta) (||g||^2 - mu_t)^2 are
    running moments, from 0. c_t goes linearly from `start` to `end` over the T steps. The host reads ||g||^2 in every
    step. In data-parallel training the mean of the processes' ||g||^2 decides. With groups, ||g||^2 of the first group
    decides.

    The formulas are those of a description by others (junaidaliop/zij); they were not checked against the paper. No
    code of the authors was found. Sources of the defaults: start and end are ours, decay 0.9 is that of a summary that
    is not reliable. How many steps make a second pass depends on the data; docs/family.md has examples.

    Args:
        start: c in the first step.
        end: c in the last step. With start = end = -1e9 the steps are SAM's, with 1e9 the base optimizer's.
        decay: delta, in [0, 1).
        total_steps: T, number of steps of the training.
        around: The method of the steps with a second pass, one pass at w and one at w + eps. Default: SAM.

    Raises:
        ValueError: If `around` makes other passes.
    """

    name = "ae_sam"
    descends_along_g = True
    needs_number = True
    data_decide = True
    capture_blocker = "the norm of the gradient decides on the host whether there is a second pass"

    def __init__(
        self,
        start: float = 1.0,
        end: float = -1.0,
        decay: float = 0.9,
        *,
        total_steps: int,
        around: Method | None = None,
    ) -> None:
        super().__init__(around)
        inner = self.around
        while isinstance(inner, Around):
            inner = inner.around
        if type(inner).accumulate is not Method.accumulate:
            raise ValueError(f"ae_sam needs a method with a pass at w and one at w + eps: {inner.name} makes others")
        self.start, self.end, self.decay, self.total_steps = start, end, decay, total_steps
        self._ascends = False

    def prepare(self, objective: Objective) -> None:
        """Start with mu = sigma = 0."""
        super().prepare(objective)
        self.state["moments"] = [torch.zeros(2, dtype=torch.float32, device=objective.device)]

    def accumulate(self, group: Group) -> GroupStats:
        """Make the pass at w, and the second pass if `_decide` says so."""
        return Method.accumulate(self, group)

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation | None:
        """Return the other method's eps, or None to make no second pass."""
        if group.is_first:
            self._ascends = self._decide(grads, group.context)
        return self.around.perturb(grads, group) if self._ascends else None

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Combine the gradients as the other method does, in steps with a second pass."""
        if self._ascends:
            super().combine(final, first, context)

    def _decide(self, grads: list[Tensor], context: StepContext) -> bool:
        """Return whether the step makes a second pass; stages the moments."""
        parallel, number = context.objective.context, context.number
        assert number is not None
        square = (context.norm(grads) / context.loss_scale).square().float()
        square = parallel.all_reduce_sum(square) / parallel.world_size
        mean, variance = self.state["moments"][0].unbind()
        mean = self.decay * mean + (1 - self.decay) * square
        variance = self.decay * variance + (1 - self.decay) * (square - mean).square()
        self.staged["moments"] = [torch.stack([mean, variance])]
        fraction = min(number / max(self.total_steps - 1, 1), 1.0)
        threshold = self.start + (self.end - self.start) * fraction
        return bool(square >= mean + threshold * variance.sqrt())
