"""SAM with the second-order term that eq. 3 drops (Foret et al., arXiv 2010.01412, Appendix C.4)."""

import torch

from sam_runner.sam.method import Group, GroupStats, Method
from sam_runner.sam.perturbation import Perturbation, epsilon, norm_of, require_norm


class SecondOrder(Method):
    """The gradient of w -> L(w + eps(w)), exact by autograd: g_SAM + (d eps/d w)^T g_SAM.

    Args:
        p: Norm of the ball, in [1, inf]; see `sam_runner.sam.perturbation.epsilon`.

    Raises:
        ValueError: If p is not in [1, inf].
    """

    name = "second_order"
    capture_blocker = "the second-order term is differentiated twice"
    shard_blocker = "the second-order term does not work with sharded weights"

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        require_norm(p)
        self.p = p

    def cost(self, number: int) -> tuple[float, float]:
        """Return the passes of two gradients, and three backward passes through the first one; see `Work`."""
        return 2, 5

    def accumulate(self, group: Group) -> GroupStats:
        """Add the group's exact gradient to ``.grad``."""
        first, grads = group.gradient(create_graph=True)
        eps = epsilon(grads, group.context.rho, self.p)
        grad_norm, eps_norm = (norm_of([tensor.detach() for tensor in tensors]) for tensors in (grads, eps))
        detached = Perturbation([part.detach() for part in eps], torch.ones_like(grad_norm), eps_norm, grad_norm)
        with group.at(detached, keep=True):
            perturbed, finals = group.gradient(shaken=True)
        # The graph saved the parameters themselves, which are at w again here. An unused parameter is in no graph.
        outputs = [(part, grad) for part, grad in zip(eps, finals, strict=True) if part.requires_grad]
        terms = group.context.objective.differentiate_again(
            [part for part, _ in outputs], [grad for _, grad in outputs]
        )
        group.used = [is_used or term is not None for is_used, term in zip(group.used, terms, strict=True)]
        group.add_gradient([f if term is None else f.add_(term) for f, term in zip(finals, terms, strict=True)])
        return GroupStats(first, perturbed.loss, grad_norm, eps_norm)
