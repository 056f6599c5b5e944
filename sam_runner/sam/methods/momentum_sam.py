"""Momentum SAM: eps along the momentum, one pass per step (Becker, Altrock and Risse, 2024, arXiv 2401.12033)."""

from dataclasses import replace

from torch import Tensor

from sam_runner.distributed.sharding import to_local
from sam_runner.sam.method import Group, GroupStats, Method, StepContext
from sam_runner.sam.perturbation import perturbation

BUFFERS = ("momentum_buffer", "exp_avg")  # names of the momentum in torch.optim


class MomentumSam(Method):
    """eps = -rho v / ||v||_2 with the momentum v of the base optimizer; its gradient is the only one of the step.

    v is the buffer of SGD and RMSprop and the first moment of Adam and AdamW, before this step. In the first step v is
    0 and so is eps. The losses, outputs and normalisation statistics of a step are those at w + eps: there is no pass
    at w.

    Disagreement: the authors' code (MarlonBecker/MSAM) keeps the weights at w + eps between steps and moves back for
    the evaluation, which is the same; its weight decay is that of w + eps, here it is that of w. Source of the default:
    rho 0.3 is that of their class for SGD (AdamW: 1). Their commands for CIFAR-100 and ImageNet have rho 3, with which
    the default network reaches 96.6% on the digits instead of 99.4%.

    Raises:
        ValueError: In the second step, if the base optimizer has no momentum.
    """

    name = "momentum_sam"

    def passes(self, number: int) -> int:
        """Return 1."""
        return 1

    def accumulate(self, group: Group) -> GroupStats:
        """Add the gradient at w + eps to ``.grad``."""
        context = group.context
        eps = perturbation(_momentum(context), context.rho, shards=context.objective.shards)
        with group.at(replace(eps, scale=-eps.scale), keep=True):
            evaluation = group.backward()
        return GroupStats(evaluation, evaluation.loss, None, eps.norm)


def _momentum(context: StepContext) -> list[Tensor]:
    """Return v, one tensor per parameter; zeros for a parameter that the optimizer has not changed yet."""
    buffers = []
    for param in context.params:
        state = context.optimizer.state.get(param, {})
        found = [state[name] for name in BUFFERS if state.get(name) is not None]
        if state and not found:
            kind = type(context.optimizer).__name__
            raise ValueError(f"momentum_sam needs a base optimizer with momentum: {kind} has none")
        buffers.append(to_local(found[0] if found else param.detach().new_zeros(param.shape)))
    return buffers
