"""SAM: eps of eq. 2, for any norm (Foret, Kleiner, Mobahi and Neyshabur, ICLR 2021, arXiv 2010.01412)."""

from torch import Tensor

from sam_runner.sam.method import Group, Method
from sam_runner.sam.perturbation import Perturbation, perturbation, require_norm


class Sam(Method):
    """eps = argmax over ||e||_p <= rho of e . g (eq. 2); the base optimizer gets the gradient at w + eps (eq. 3).

    Args:
        p: Norm of the ball, in [1, inf]; see `sam_runner.sam.perturbation.epsilon`.
        sync_perturbation: In data-parallel training one eps for all ranks, see `Method`.

    Raises:
        ValueError: If p is not in [1, inf].
    """

    name = "sam"

    def __init__(self, p: float = 2.0, *, sync_perturbation: bool = False) -> None:
        super().__init__()
        require_norm(p)
        self.p = p
        self.sync_perturbation = sync_perturbation
        if p != 2 or not sync_perturbation:
            self.shard_blocker = "sharded weights need p=2 and sync_perturbation=True"

    def perturb(self, grads: list[Tensor], group: Group) -> Perturbation:
        """Return eps of eq. 2."""
        return perturbation(grads, group.context.rho, self.p, group.context.objective.shards)
