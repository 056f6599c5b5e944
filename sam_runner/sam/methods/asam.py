"""ASAM: the perturbation in units of the weights (Kwon, Kim, Park and Choi, ICML 2021, arXiv 2102.11600, eq. 8)."""

from torch import Tensor

from sam_runner.distributed.sharding import to_local
from sam_runner.sam.method import Group, Method, StepContext
from sam_runner.sam.objective import Objective
from sam_runner.sam.perturbation import Perturbation, divide_radius


class Asam(Method):
    """eps = rho T^2 g / ||T g||_2 with T = |w| + eta, so ||T^-1 eps||_2 = rho.

    A step with eta = 0 does not change if a layer's weights are multiplied by a number and the next layer's are divided
    by it. T is 1 for parameters without "weight" in their name, as in the authors' code (SamsungLabs/ASAM): biases keep
    T = 1, the factors of normalisation layers do not.

    Sources of the defaults: rho 0.5 and eta 0.01 are the defaults of the authors' class. The paper has rho 0.5 on
    CIFAR-10 and 1.0 on CIFAR-100. Disagreement: the authors' script for CIFAR passes eta 0; the class is followed.

    Args:
        eta: Term added to |w|, >= 0. With eta -> inf the step is SAM's with the radius rho eta.
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.
    """

    name = "asam"

    def __init__(self, eta: float = 0.01, *, sync_perturbation: bool = False) -> None:
        super().__init__()
        self.eta = eta
        self.sync_perturbation = sync_perturbation
        self.shard_blocker = "" if sync_perturbation else "sharded weights need sync_perturbation=True"
        self._scaled: set[int] = set()

    def prepare(self, objective: Objective) -> None:
        """Find the parameters that are weights."""
        self._scaled = {id(param) for name, param in objective.model.named_parameters() if "weight" in name}

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Write T^2 g over `grads` and return eps."""
        context = group.context
        grad_norm = context.norm(grads)
        self._multiply(grads, context)
        scale = divide_radius(context.rho, context.norm(grads))
        self._multiply(grads, context)
        return Perturbation(grads, scale, scale * context.norm(grads), grad_norm)

    def _multiply(self, grads: list[Tensor], context: StepContext) -> None:
        """Multiply by T in place."""
        for grad, param in zip(grads, context.params, strict=True):
            if id(param) in self._scaled:
                grad.mul_(to_local(param.detach()).abs().add_(self.eta))
