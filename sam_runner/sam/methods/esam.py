"""ESAM: perturb a part of the weights, descend on a part of the batch (Du et al., ICLR 2022, arXiv 2110.03141)."""

import torch
from torch import Tensor

from sam_runner.sam.batch import Batch
from sam_runner.sam.method import Group, GroupStats, Method
from sam_runner.sam.objective import Evaluation
from sam_runner.sam.perturbation import Perturbation, perturbation
from sam_runner.utils.seeding import make_generator


class Esam(Method):
    """eps is SAM's times M / beta with M_i = 1 with probability beta, else 0; the mean of eps is SAM's.

    The second pass differentiates the fraction gamma of the group's examples whose loss rises most from w to w + eps.
    To choose them, the step makes a forward pass of the whole group at w + eps. So a step costs 1 + gamma gradients and
    one forward pass.

    Disagreement: M is drawn for each weight, as in the paper; the authors' code (dydjw9/Efficient_SAM) draws it for
    whole tensors and does not compute the gradients of the others, a saving that is not made here. In that code
    ||eps||_2 is exactly rho / beta. The code leaves out the example at the threshold; here round(gamma n) examples are
    used. Sources of the defaults: beta 0.6, gamma 0.5 and rho 0.05 are those of the authors' script for ResNet-18; for
    a wide ResNet it has 0.5, 0.5 and 0.1.

    Args:
        beta: Probability that a weight is perturbed, in (0, 1].
        gamma: Fraction of the examples that the second pass uses, in (0, 1], two examples at least. beta = gamma = 1 is
            bitwise equal to SAM.
        seed: Seed of M, which is a function of the seed and the step's number.
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.

    Raises:
        ValueError: In the first step with gamma < 1, if the losses of single examples cannot be computed, see
            `Objective.example_losses`.
    """

    name = "esam"

    def __init__(
        self, beta: float = 0.6, gamma: float = 0.5, *, seed: int = 0, sync_perturbation: bool = False
    ) -> None:
        super().__init__()
        self.beta, self.gamma, self.seed = beta, gamma, seed
        self.sync_perturbation = sync_perturbation
        self.needs_number = beta < 1
        if beta < 1:
            self.capture_blocker = "the weights that are perturbed are drawn anew in each step"
            self.shard_blocker = "weights are drawn as whole tensors: with sharded weights use beta=1"
        elif not sync_perturbation:
            self.shard_blocker = "sharded weights need sync_perturbation=True"

    def cost(self, number: int) -> tuple[float, float]:
        """Return 1 + gamma gradients and, unless gamma = 1, a forward pass."""
        return 1 + self.gamma + (self.gamma < 1), 1 + self.gamma

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Return eps."""
        context = group.context
        eps = perturbation(grads, context.rho, shards=context.objective.shards)
        if self.beta == 1:
            return eps
        assert context.number is not None
        draws = make_generator(self.seed, "esam", context.number, device=context.objective.device)
        for grad in grads:
            kept = torch.rand(grad.shape, generator=draws, device=grad.device) < self.beta
            grad.mul_(kept).div_(self.beta)
        return Perturbation(grads, eps.scale, eps.scale * context.norm(grads), eps.grad_norm)

    def accumulate(self, group: Group) -> GroupStats:
        """Make the pass at w, the evaluation at w + eps and the pass of the chosen examples."""
        if self.gamma == 1:
            return super().accumulate(group)
        first, grads = group.gradient()
        eps = self.perturb(grads, group)
        del grads
        with group.at(eps):
            after = group.evaluate()
            group.backward(self._choose(first, after, group))
        return GroupStats(first, after.loss, eps.grad_norm, eps.norm)

    def _choose(self, before: Evaluation, after: Evaluation, group: Group) -> Batch:
        """Return the examples whose loss rises most, in the order of the batch; two at least, for batch norm."""
        objective, count = group.context.objective, len(group.batch)
        losses = [objective.example_losses(group.batch, evaluation.outputs) for evaluation in (before, after)]
        chosen = max(round(self.gamma * count), min(2, count))
        return group.batch.select((losses[1] - losses[0]).topk(chosen).indices.sort().values)
