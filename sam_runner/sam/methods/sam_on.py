"""SAM-ON: perturb normalisation layers only (Mueller, Vlaar, Rolnick and Hein, NeurIPS 2023, arXiv 2306.04226)."""

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sam_runner.sam.method import Group, Method
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import Perturbation, perturbation

NORMALISATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class SamOn(Method):
    """eps of eq. 2 of SAM for the parameters of normalisation layers, 0 for all others; or the complement.

    The norm of g is that of the perturbed parameters, so ||eps||_2 = rho.

    Normalisation layers are torch's, and layers with "norm" in the name of their class, as many networks have RMSNorms
    of their own. Of the latter only parameters with one number per channel count, and not those of linear layers,
    convolutions and blocks of layers, which may have such a name too.

    Disagreement: the authors' code (mueller-mp/SAM-ON) finds the layers by "norm" or "bn" in parameter names; here
    their class decides. Source of the default: rho 0.5 is that of the authors' class; their example for CIFAR-100 has
    rho 10 with ASAM's perturbation.

    Args:
        only: "normalisation" or "others".
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.

    Raises:
        ValueError: By `prepare`, if no parameter is left to perturb.
    """

    name = "sam_on"

    def __init__(
        self, only: Literal["normalisation", "others"] = "normalisation", *, sync_perturbation: bool = False
    ) -> None:
        super().__init__()
        self.only = only
        self.sync_perturbation = sync_perturbation
        self.shard_blocker = "" if sync_perturbation else "sharded weights need sync_perturbation=True"
        self._inside: set[int] = set()

    def prepare(self, objective: Objective) -> None:
        """Find the parameters of normalisation layers."""
        self._inside = {id(param) for layer in objective.model.modules() for param in _normalising_parameters(layer)}
        if not any(self._is_perturbed(param) for param in objective.params):
            which = "no" if self.only == "normalisation" else "only"
            raise ValueError(f"the network has {which} trained parameters in normalisation layers: nothing to perturb")

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Write 0 over the gradients of the other parameters and return eps."""
        context = group.context
        grad_norm = context.norm(grads)
        for grad, param in zip(grads, context.params, strict=True):
            if not self._is_perturbed(param):
                grad.zero_()
        return replace(perturbation(grads, context.rho, shards=context.objective.shards), grad_norm=grad_norm)

    def _is_perturbed(self, param: nn.Parameter) -> bool:
        return (id(param) in self._inside) == (self.only == "normalisation")


def _normalising_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a normalisation layer; none of another layer."""
    if isinstance(layer, NORMALISATION):
        return list(layer.parameters())
    is_other = isinstance(layer, nn.Linear | _ConvNd) or any(layer.children())
    if is_other or "norm" not in type(layer).__name__.lower():
        return []
    return [param for param in layer.parameters() if param.ndim and param.numel() == max(param.shape)]
