"""Sharpness-Aware Minimization: Algorithm 1 of Foret, Kleiner, Mobahi and Neyshabur (ICLR 2021, arXiv 2010.01412).

For a batch B, weights w and a base optimizer:

    g     = grad L_B(w)                                   first pass
    eps   = argmax over ||e||_p <= rho of e . g           `epsilon`, eq. 2
    g_SAM = grad L_B at w + eps                           second pass, eq. 3
    w     = base optimizer's step from w along g_SAM

`SamStep` is that step. Where implementations differ, the choice is an argument and its default is said here. The step
never waits for the device, except for float16's loss scaler, which has to know whether its step was skipped.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from sam_runner.objective import Batch, Evaluation, Objective
from sam_runner.seeding import RngState


def epsilon(grads: list[Tensor], rho: float, p: float = 2.0) -> list[Tensor]:
    """The perturbation of eq. 2: the e with ||e||_p = rho that maximises e . g, over all tensors as one vector.

    With 1/p + 1/q = 1:  e = rho sign(g) |g|^(q-1) / (||g||_q^q)^(1/p). For p = 2 this is rho g / ||g||_2, for p = inf
    rho sign(g), for p = 1 all of rho on the largest |g|, equal ones sharing it (the limit p -> 1). A zero gradient
    gives a zero perturbation, and epsilon(c g) = epsilon(g) for c > 0, so a loss scale cancels. Differentiable in
    `grads` for 1 < p < inf.

    Args:
        grads: g, one tensor per parameter, all floating point on one device. For p = 2 ||g||_2^2 must be in the dtype's
            range (float32: about 1e-19 < ||g|| < 1e19); any other p is scaled by the largest |g| first.
        rho: Radius, >= 0.
        p: Norm of the ball, in [1, inf].

    Returns:
        e, tensors of the shapes and dtypes of `grads`; NaN where g holds a NaN or an infinity.
    """
    if p == 2:
        if any(grad.requires_grad for grad in grads):
            norm = torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))
            # The inner where keeps a zero gradient's derivative from being 0 times infinity.
            scale = torch.where(norm == 0, 0.0, rho / torch.where(norm == 0, 1.0, norm))
            return [grad * scale for grad in grads]
        norm = get_total_norm(grads, 2.0)
        return list(torch._foreach_mul(grads, torch.where(norm == 0, 0.0, rho / norm)))
    largest = get_total_norm([grad.detach() for grad in grads], math.inf)
    radius = rho + 0 * largest  # NaN for a non-finite gradient, whose sign would look harmless
    if p == math.inf:
        return [radius * grad.sign() for grad in grads]
    if p == 1:
        ties = [grad.abs() == largest for grad in grads]
        num_ties = torch.stack([tie.sum() for tie in ties]).sum()
        return [radius * grad.sign() * tie / num_ties for grad, tie in zip(grads, ties, strict=True)]
    q = p / (p - 1)
    unit = [grad / torch.where(largest == 0, 1.0, largest) for grad in grads]
    # An entry that is exactly 0 stays 0; its derivative, infinite for p > 2, is taken as 0.
    sizes = [torch.where(part == 0, 1.0, part.abs()) for part in unit]
    power_sum = torch.stack([(size.pow(q) * (part != 0)).sum() for size, part in zip(sizes, unit, strict=True)]).sum()
    scale = torch.where(largest == 0, 0.0, radius / torch.where(largest == 0, 1.0, power_sum).pow(1 / p))
    return [part.sign() * size.pow(q - 1) * scale for part, size in zip(unit, sizes, strict=True)]


@contextmanager
def displaced(params: list[nn.Parameter], eps: list[Tensor], buffer: list[Tensor] | None = None) -> Iterator[None]:
    """Inside the body the parameters hold w + eps; afterwards the very bits of w, also when the body raises.

    w is not touched (w + e - e would not be w in floating point): the parameters point at `buffer` meanwhile.

    Args:
        params: Parameters at w.
        eps: What to add, of the same shapes; not needed any more once the body runs.
        buffer: Memory for w + eps, shaped as `params`, in other storage; None allocates it.
    """
    buffer = [torch.empty_like(param) for param in params] if buffer is None else buffer
    with torch.no_grad():
        torch._foreach_copy_(buffer, [param.detach() for param in params])
        torch._foreach_add_(buffer, eps)
    del eps
    originals = [param.data for param in params]
    try:
        for param, moved in zip(params, buffer, strict=True):
            param.data = moved
        yield
    finally:
        for param, original in zip(params, originals, strict=True):
            param.data = original


@dataclass(frozen=True)
class StepStats:
    """What one step saw; 0-dim float tensors on the device, nothing has been waited for.

    Attributes:
        loss: L_B(w), without weight decay.
        loss_perturbed: L_B(w + eps); equals `loss` for a step of one pass.
        grad_norm: ||g||_2 at w without the loss scale; with groups the mean of the groups' norms for SAM, and the norm
            of their mean gradient for a step of one pass.
        eps_norm: ||eps||_2; with groups their mean.
        logits: (N, C) at w.
        skipped: Whether the loss scaler found a non-finite gradient, so that nothing was changed.
    """

    loss: Tensor
    loss_perturbed: Tensor
    grad_norm: Tensor
    eps_norm: Tensor
    logits: Tensor
    skipped: bool


class SamStep:
    """One optimizer step of Algorithm 1; with rho = 0 one plain step of the base optimizer.

    Args:
        objective: L_B and its gradient.
        optimizer: Any `torch.optim` optimizer over ``objective.params``; its state knows nothing of SAM, so checkpoints
            interchange with those of plain training.
        p: Norm of the ball, see `epsilon`.
        group_size: m of m-sharpness: each group of m images has its own eps (and batch-norm statistics), and the step
            is along the mean of the groups' gradients, weighted by their images; as m images per device in
            data-parallel training with unsynchronised perturbations, the paper's setting. None: the whole batch is one
            group.
        ascent_steps: Gradient evaluations that eps is found with (the paper's Table 11); 1 is Algorithm 1.
        projected: How further ascent steps move: False puts eps on the sphere along the gradient at w + eps,
            eps <- epsilon(grad L(w + eps)); True adds such a step and projects on the ball, eps <- P(eps +
            epsilon(...)), p = 2.
        second_order: Keep the term that eq. 3 drops, (d eps/d w)^T g_SAM, exactly, through autograd (Appendix C.4).
        grad_clip: Largest norm of the gradient that the base optimizer is given (the paper's code: 5.0); None: no
            limit. The ascent is never clipped: eps does not depend on the gradient's length.

    Raises:
        ValueError: A combination that is not defined.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        p: float = 2.0,
        group_size: int | None = None,
        ascent_steps: int = 1,
        projected: bool = False,
        second_order: bool = False,
        grad_clip: float | None = None,
    ) -> None:
        if not p >= 1:
            raise ValueError(f"p must be in [1, inf], not {p}")
        if projected and p != 2:
            raise ValueError(f"projected ascent needs p = 2, not {p}")
        if second_order and ascent_steps != 1:
            raise ValueError(f"second_order needs ascent_steps = 1, not {ascent_steps}")
        self.objective = objective
        self.optimizer = optimizer
        self.p = p
        self.group_size = group_size
        self.ascent_steps = ascent_steps
        self.projected = projected
        self.second_order = second_order
        self.grad_clip = grad_clip
        self._buffer: list[Tensor] | None = None

    def __call__(self, batch: Batch, rho: float) -> StepStats:
        """Take one step; `batch` is on the parameters' device, `rho` >= 0."""
        objective, scaler = self.objective, self.objective.scaler
        self.optimizer.zero_grad(set_to_none=True)
        groups = batch.split(self.group_size)
        before = objective.statistics.snapshot() if scaler.is_enabled() else None
        with objective.statistics.one_update(sum(len(objective.chunks(group)) for group in groups)):
            parts = [self._accumulate(group, len(group) / len(batch), rho) for group in groups]
        loss, loss_perturbed, grad_norm, eps_norm = self._mean(parts, batch)
        if rho == 0:
            grad_norm = get_total_norm([param.grad for param in objective.params if param.grad is not None])
        elif scaler.is_enabled():
            self._poison(grad_norm)
        grad_norm = grad_norm / scaler.scale(torch.ones_like(grad_norm))
        skipped = self._update()
        if skipped and before is not None:
            objective.statistics.restore(before)
        logits = parts[0][0].logits if len(parts) == 1 else torch.cat([part[0].logits for part in parts])
        return StepStats(loss, loss_perturbed, grad_norm, eps_norm, logits, skipped)

    def _accumulate(self, group: Batch, share: float, rho: float) -> tuple[Evaluation, Tensor, Tensor, Tensor]:
        """Add `share` times the group's gradient to ``.grad``; evaluation at w, loss at w + eps, ||g||, ||eps||."""
        if rho == 0:
            at_w = self.objective.backward(group, share, at_w=True)
            return at_w, at_w.loss, torch.zeros_like(at_w.loss), torch.zeros_like(at_w.loss)
        rng = RngState.capture(self.objective.device)
        at_w, grads = self.objective.gradient(group, at_w=True, create_graph=self.second_order)
        eps = epsilon(grads, rho, self.p)
        grad_norm = get_total_norm([grad.detach() for grad in grads])
        del grads  # with eps in the buffer, the second pass needs neither
        if self.second_order:
            loss_perturbed = self._descend_second_order(group, share, eps, rng)
            return at_w, loss_perturbed, grad_norm, get_total_norm([part.detach() for part in eps])
        for _ in range(self.ascent_steps - 1):
            eps = self._ascend(group, eps, rho, rng)
        eps_norm = get_total_norm(eps)
        with self._displaced(eps, rng):
            del eps
            perturbed = self.objective.backward(group, share, at_w=False)
        return at_w, perturbed.loss, grad_norm, eps_norm

    @contextmanager
    def _displaced(self, eps: list[Tensor], rng: RngState) -> Iterator[None]:
        """At w + eps, with the dropout masks of the first pass."""
        params = self.objective.params
        if self._buffer is None:  # kept: one copy of the weights, at the same addresses in every step
            self._buffer = [torch.empty_like(param) for param in params]
        rng.restore(self.objective.device)
        with displaced(params, eps, self._buffer):
            del eps
            yield

    def _ascend(self, group: Batch, eps: list[Tensor], rho: float, rng: RngState) -> list[Tensor]:
        """One more ascent step from w + eps."""
        with self._displaced(eps, rng):
            _, grads = self.objective.gradient(group, at_w=False)
        step = epsilon(grads, rho, self.p)
        if not self.projected:
            return step
        torch._foreach_add_(step, eps)
        norm = get_total_norm(step)
        return list(torch._foreach_mul(step, torch.where(norm > rho, rho / norm, 1.0)))

    def _descend_second_order(self, group: Batch, share: float, eps: list[Tensor], rng: RngState) -> Tensor:
        """Add grad_w [L(w + eps(w))] = g_SAM + (d eps/d w)^T g_SAM; `eps` carries the graph of the first pass."""
        params = self.objective.params
        earlier = [param.grad for param in params]
        self.optimizer.zero_grad(set_to_none=True)
        with self._displaced([part.detach() for part in eps], rng):
            perturbed = self.objective.backward(group, 1.0, at_w=False)
        grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        # The graph's saved weights are the parameters, which are back at w here. What no pass uses is in no graph.
        outputs = [(part, grad) for part, grad in zip(eps, grads, strict=True) if part.requires_grad]
        curvature: tuple[Tensor | None, ...] = torch.autograd.grad(
            [part for part, _ in outputs], params, [grad for _, grad in outputs], allow_unused=True
        )
        for param, grad, bend, before in zip(params, grads, curvature, earlier, strict=True):
            if param.grad is None and bend is None:
                param.grad = before
                continue
            total = grad if bend is None else grad.add_(bend)
            param.grad = total * share if before is None else before.add_(total, alpha=share)
        return perturbed.loss

    def _poison(self, grad_norm: Tensor) -> None:
        """Show a non-finite first gradient to the scaler, which looks at the final one: + 0 ||g|| is + 0 or NaN."""
        grad = next(param.grad for param in self.objective.params if param.grad is not None)
        grad.add_(grad_norm * 0)

    def _update(self) -> bool:
        """The base optimizer's step along ``.grad``; True where the scaler skipped it."""
        scaler = self.objective.scaler
        scaler.unscale_(self.optimizer)
        if self.grad_clip is not None:
            clip_grad_norm_(self.objective.params, self.grad_clip)
        scale = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        return scaler.get_scale() < scale

    @staticmethod
    def _mean(parts: list[tuple[Evaluation, Tensor, Tensor, Tensor]], batch: Batch) -> tuple[Tensor, ...]:
        """Loss at w, at w + eps, ||g|| and ||eps||, averaged over the groups by their images."""
        columns = zip(*((part[0].loss, *part[1:]) for part in parts), strict=True)
        if len(parts) == 1:
            return tuple(column[0] for column in columns)
        shares = [len(part[0].logits) / len(batch) for part in parts]
        return tuple(
            torch.stack([value * share for value, share in zip(column, shares, strict=True)]).sum()
            for column in columns
        )
