"""Layer-wise SAM: eq. 2 for each parameter tensor (Liu, Mai, Chen, Hsieh and You, CVPR 2022, arXiv 2203.02714)."""

import torch
from torch import Tensor

from sam_runner.distributed.sharding import to_local
from sam_runner.sam.method import Group, Method, StepContext
from sam_runner.sam.perturbation import Perturbation, divide_radius, widest_dtype


class LayerwiseSam(Method):
    """eps_l = rho g_l / ||g_l||_2 for each parameter tensor l, optionally times ||w_l||_2 as in LARS and LAMB.

    This is the direction of Look-LayerSAM. ||eps||_2 is rho sqrt(number of tensors with a gradient), so rho has to be
    smaller than SAM's.

    The formulas are those of descriptions by others; they were not checked against the paper. No code of the authors
    was found. Disagreement: according to these descriptions the paper scales by ||w_l|| / ||g_l||, but PhysicsNeMo
    scales by 1 / ||g_l||. `scale_by_weights` chooses.

    Source of the default: our choice. With 25 tensors, rho 0.01 gives the ||eps||_2 of SAM's rho 0.05.

    Args:
        scale_by_weights: Multiply by ||w_l||_2.
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.
    """

    name = "layerwise_sam"

    def __init__(self, *, scale_by_weights: bool = False, sync_perturbation: bool = False) -> None:
        super().__init__()
        self.scale_by_weights = scale_by_weights
        self.sync_perturbation = sync_perturbation
        self.shard_blocker = "" if sync_perturbation else "sharded weights need sync_perturbation=True"

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Write eps over `grads` and return it."""
        context = group.context
        norms = _norms(grads, context)
        factors = divide_radius(context.rho, norms)
        if self.scale_by_weights:
            factors = factors * _norms([to_local(param.detach()) for param in context.params], context)
        for grad, factor in zip(grads, factors.unbind(), strict=True):
            grad.mul_(factor)
        grad_norm = norms.square().sum().sqrt()
        return Perturbation(grads, torch.ones_like(grad_norm), context.norm(grads), grad_norm)


def _norms(tensors: list[Tensor], context: StepContext) -> Tensor:
    """Return the norms of the tensors over all shards, (number of tensors,)."""
    dtype = widest_dtype(tensors)
    norms = torch.stack([norm.to(dtype) for norm in torch._foreach_norm(tensors)])
    shards = context.objective.shards
    return norms if shards.world_size == 1 else shards.all_reduce_sum(norms.square()).sqrt()
