"""Momentum SAM: eps along the momentum, one pass per step (Becker, Altrock and Risse, 2024, arXiv 2401.12033)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

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
    the evaluation, which is equivalent; its weight decay acts on w + eps, here weight decay acts on w. Source of the
    default: rho 0.3 is that of their class for SGD (AdamW: 1). Their paper and commands for CIFAR-100 have rho 3, which
    is worse on the digits (docs/family.md).

    Raises:
        ValueError: In the first or second step, if the base optimizer has no momentum or momentum 0.
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
    optimizer = context.optimizer
    found = [find_momentum(optimizer, param) for param in context.params]
    if any(group.get("momentum") == 0 for group in optimizer.param_groups) or any(
        momentum is None and optimizer.state.get(param) for param, momentum in zip(context.params, found, strict=True)
    ):
        raise ValueError(f"momentum_sam needs a base optimizer with momentum: {type(optimizer).__name__} has none")
    pairs = zip(context.params, found, strict=True)
    return [to_local(param.detach().new_zeros(param.shape) if v is None else v) for param, v in pairs]


def find_momentum(optimizer: torch.optim.Optimizer, param: nn.Parameter) -> Tensor | None:
    """Return the momentum of a parameter, or None if the optimizer has none (before its first step, or at all)."""
    state = optimizer.state.get(param, {})
    return next((state[name] for name in BUFFERS if state.get(name) is not None), None)
