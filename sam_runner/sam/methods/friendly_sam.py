"""Friendly SAM: eps along the noise of the batch gradient (Li, Zhou, He, Cheng and Huang, CVPR 2024, 2403.12350)."""

import torch
from torch import Tensor

from sam_runner.distributed.sharding import to_local
from sam_runner.sam.method import Group, Method, StepContext
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import Perturbation, perturbation


class FriendlySam(Method):
    """m_t = lambda m_(t-1) + (1 - lambda) g;  d = g - sigma m_t;  eps = rho d / ||d||_2.

    m estimates the gradient of the whole training set, so d is the part of g that is special to the batch. Each group
    of a batch uses its own g in d; m is updated by the mean gradient.

    Disagreement: the authors' code (nblt/F-SAM) subtracts m_(t-1) and starts with m_0 = g_0; here m_t is subtracted and
    m starts at 0. With sigma = 1 both have the same direction for the same m_(t-1), because then
    d = lambda (g - m_(t-1)).

    Sources of the defaults: rho 0.2, sigma 1 and lambda 0.95 are those of the authors' script for CIFAR-100. (The
    defaults of their class are rho 0.05 and lambda 0.9; a log of theirs has lambda 0.6.)

    Args:
        sigma: Part of m that is subtracted, in [0, 1]. sigma = 0 is SAM.
        decay: lambda, in [0, 1).
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.
    """

    name = "friendly_sam"
    combines = True

    def __init__(self, sigma: float = 1.0, decay: float = 0.95, *, sync_perturbation: bool = False) -> None:
        super().__init__()
        self.sigma, self.decay = sigma, decay
        self.sync_perturbation = sync_perturbation
        self.shard_blocker = "" if sync_perturbation else "sharded weights need sync_perturbation=True"

    def prepare(self, objective: Objective) -> None:
        """Start with m = 0."""
        self.state["mean"] = [torch.zeros_like(param) for param in objective.params]

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Write d over `grads` and return eps."""
        context = group.context
        grad_norm = context.norm(grads)
        subtracted = self.sigma * self.decay * context.loss_scale
        for grad, mean in zip(grads, self.state_tensors("mean"), strict=True):
            grad.mul_(1 - self.sigma * (1 - self.decay)).sub_(mean * subtracted)
        eps = perturbation(grads, context.rho, shards=context.objective.shards)
        return Perturbation(eps.direction, eps.scale, eps.norm, grad_norm)

    def combine(self, final: list[Tensor], first: list[Tensor] | None, context: StepContext) -> None:
        """Update m; the final gradient stays g_eps."""
        if first is not None:
            part = (1 - self.decay) / context.loss_scale
            pairs = zip(self.state["mean"], first, strict=True)
            self.staged["mean"] = [to_local(mean) * self.decay + grad * part for mean, grad in pairs]
