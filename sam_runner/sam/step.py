"""Sharpness-Aware Minimization: Algorithm 1 of Foret, Kleiner, Mobahi and Neyshabur (ICLR 2021, arXiv 2010.01412).

For a batch B, weights w and a base optimizer:

    g     = grad L_B(w)                                   first pass
    eps   = argmax over ||e||_p <= rho of e . g           `epsilon`, eq. 2
    g_SAM = grad L_B at w + eps                           second pass, eq. 3
    w     = base optimizer's step from w along g_SAM

`SamStep` is that step. Where implementations differ, the choice is an argument and its default is said here. The step
never waits for the device, except for float16's loss scaler, which has to know whether its step was skipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sam_runner.sam.objective import Batch, Evaluation, Objective
from sam_runner.sam.optimizer_step import Update
from sam_runner.sam.perturbation import (
    Perturbation,
    epsilon,
    norm_of,
    perturbation,
    perturbed_parameters,
    random_perturbation,
    swapped_parameters,
)
from sam_runner.utils.seeding import RngState, make_generator

CHECKED = ("the loss at w", "the loss at w + eps", "the gradient at w", "the final gradient")


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
        finite: Which of `CHECKED` are finite, bool, (4,); where one is not, weights and optimizer state are as before.
        skipped: Whether the loss scaler found a non-finite gradient, so that nothing was changed; known on the host.
    """

    loss: Tensor
    loss_perturbed: Tensor
    grad_norm: Tensor
    eps_norm: Tensor
    logits: Tensor
    finite: Tensor
    skipped: bool


def _is_zero(rho: float | Tensor) -> bool:
    """Whether a step is one pass; a tensor is never looked at."""
    return not isinstance(rho, Tensor) and rho == 0


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
            group; in data-parallel training, the rank's.
        sync_perturbation: In data-parallel training one eps for the images of all ranks, for a second message of the
            size of the weights.
        ascent_steps: Gradient evaluations that eps is found with (the paper's Table 11); 1 is Algorithm 1.
        projected: How further ascent steps move: False puts eps on the sphere along the gradient at w + eps,
            eps <- epsilon(grad L(w + eps)); True adds such a step and projects on the ball, eps <- P(eps +
            epsilon(...)), p = 2.
        second_order: Keep the term that eq. 3 drops, (d eps/d w)^T g_SAM, exactly, through autograd (Appendix C.4).
        direction_seed: eps in a random direction instead of the gradient's (Appendix C.5, `random_perturbation`), a
            function of this seed and of the step's number: the same for all groups of a step and on all ranks. The
            first pass stays as it is: statistics, ||g|| and what a step costs are those of SAM. None: the gradient's.
        grad_clip: Largest norm of the gradient that the base optimizer is given (the paper's code: 5.0); None: no
            limit. The ascent is never clipped: eps does not depend on the gradient's length.
        keep_statistics: Whether a step without an update leaves the batch-norm statistics alone too; with a loss scaler
            it always does.

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
        sync_perturbation: bool = False,
        ascent_steps: int = 1,
        projected: bool = False,
        second_order: bool = False,
        direction_seed: int | None = None,
        grad_clip: float | None = None,
        keep_statistics: bool = False,
    ) -> None:
        if not p >= 1:
            raise ValueError(f"p must be in [1, inf], not {p}")
        if projected and p != 2:
            raise ValueError(f"projected ascent needs p = 2, not {p}")
        if second_order and ascent_steps != 1:
            raise ValueError(f"second_order needs ascent_steps = 1, not {ascent_steps}")
        if sync_perturbation and (second_order or group_size is not None):
            raise ValueError("sync_perturbation is for one group, without second_order")
        if objective.shards.world_size > 1 and (p != 2 or not sync_perturbation):
            raise ValueError("sharded weights need p = 2 and sync_perturbation")
        if direction_seed is not None:
            if p != 2 or ascent_steps != 1 or second_order:
                raise ValueError("a random direction needs p = 2 and ascent_steps = 1, without second_order")
            if sync_perturbation:
                raise ValueError("a random direction is the same on all ranks: leave sync_perturbation out")
        self.objective = objective
        self.optimizer = optimizer
        self.p = p
        self.group_size = group_size
        self.sync_perturbation = sync_perturbation
        self.ascent_steps = ascent_steps
        self.projected = projected
        self.second_order = second_order
        self.direction_seed = direction_seed
        self._update = Update(optimizer, objective.scaler, grad_clip, objective.shards)
        self._keep_statistics = keep_statistics or objective.scaler.is_enabled()

    def __call__(self, batch: Batch, rho: float | Tensor, number: int | None = None) -> StepStats:
        """Take one step.

        Args:
            batch: On the parameters' device.
            rho: >= 0, or 0-dim on the device and > 0.
            number: Of the step in its run, which a random direction is drawn from; needed for one.
        """
        objective, scaler = self.objective, self.objective.scaler
        if self.direction_seed is not None and number is None:
            raise ValueError("a random direction needs the number of the step")
        self.optimizer.zero_grad(set_to_none=True)
        groups = batch.split(self.group_size)
        before = objective.statistics.snapshot() if self._keep_statistics else None
        num_passes = sum(len(objective.chunks(group)) for group in groups)
        with objective.statistics.single_statistics_update(num_passes, batch.weight):
            shares = [batch.weight * len(group) / len(batch) for group in groups]
            pairs = zip(groups, shares, strict=True)
            parts = [self._accumulate(group, share, rho, group is groups[-1], number) for group, share in pairs]
        if self.second_order and not _is_zero(rho):
            objective.average_gradients()
        loss, loss_perturbed, grad_norm, eps_norm = self._mean(parts, batch)
        finite = objective.ranks.all_reduce_and(torch.stack([loss, loss_perturbed, grad_norm]).isfinite())
        grad_norm = grad_norm / scaler.scale(torch.ones_like(grad_norm))
        final_norm, finite, skipped = self._update(finite)
        if before is not None:
            objective.statistics.restore(before, where=~finite.all())
        logits = parts[0][0].logits if len(parts) == 1 else torch.cat([part[0].logits for part in parts])
        grad_norm = final_norm if _is_zero(rho) else grad_norm
        return StepStats(loss, loss_perturbed, grad_norm, eps_norm, logits, finite, skipped)

    def _accumulate(
        self, group: Batch, share: float, rho: float | Tensor, last: bool, number: int | None
    ) -> tuple[Evaluation, Tensor, Tensor, Tensor]:
        """Add `share` times the group's gradient to ``.grad``; evaluation at w, loss at w + eps, ||g||, ||eps||.

        The ranks' means are taken with the `last` group of the batch.
        """
        if _is_zero(rho):
            at_w = self.objective.backward(group, share, at_w=True, reduce=last)
            return at_w, at_w.loss, torch.zeros_like(at_w.loss), torch.zeros_like(at_w.loss)
        rng = RngState.capture(self.objective.device)
        together = self.sync_perturbation
        at_w, grads = self.objective.gradient(group, at_w=True, create_graph=self.second_order, reduce=together)
        if self.second_order:
            return at_w, *self._descend_second_order(group, share, grads, rho, rng)
        eps = self._first_ascent(grads, rho, number)
        grad_norm = eps.grad_norm
        del grads
        for _ in range(self.ascent_steps - 1):
            eps = self._ascend(group, eps, rho, rng)
        eps_norm = eps.norm
        moved = perturbed_parameters(self.objective.params, eps, in_place=True)
        del eps  # its memory holds w + eps now
        rng.restore(self.objective.device)  # the dropout masks of the first pass
        with swapped_parameters(self.objective.params, moved):
            del moved
            perturbed = self.objective.backward(group, share, at_w=False, reduce=last)
        return at_w, perturbed.loss, grad_norm, eps_norm

    def _first_ascent(self, grads: list[Tensor], rho: float | Tensor, number: int | None) -> Perturbation:
        """The first eps, along the gradient at w or in the random direction of step `number`."""
        if self.direction_seed is None or number is None:
            return perturbation(grads, rho, self.p, self.objective.shards)
        draws = make_generator(self.direction_seed, "direction", number, device=self.objective.device)
        return random_perturbation(grads, rho, draws)

    def _ascend(self, group: Batch, eps: Perturbation, rho: float | Tensor, rng: RngState) -> Perturbation:
        """One more ascent step from w + eps."""
        rng.restore(self.objective.device)
        with swapped_parameters(
            self.objective.params, perturbed_parameters(self.objective.params, eps, in_place=not self.projected)
        ):
            _, grads = self.objective.gradient(group, at_w=False, reduce=self.sync_perturbation)
        step = perturbation(grads, rho, self.p, self.objective.shards)
        if not self.projected:
            return step
        total = torch._foreach_add(step.tensors(), eps.tensors())
        norm = norm_of(list(total), self.objective.shards)
        scale = (rho / norm).clamp(max=1.0)
        return Perturbation(list(total), scale, scale * norm, step.grad_norm)

    def _descend_second_order(
        self, group: Batch, share: float, grads: list[Tensor], rho: float | Tensor, rng: RngState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add grad_w [L(w + eps(w))] = g_SAM + (d eps/d w)^T g_SAM; `grads` carry the graph of the first pass.

        Returns:
            The loss at w + eps, ||g||, ||eps||.
        """
        params = self.objective.params
        eps = epsilon(grads, rho, self.p)
        grad_norm, eps_norm = (norm_of([part.detach() for part in parts]) for parts in (grads, eps))
        there = Perturbation([part.detach() for part in eps], torch.ones_like(grad_norm), eps_norm, grad_norm)
        earlier = [param.grad for param in params]
        self.optimizer.zero_grad(set_to_none=True)
        rng.restore(self.objective.device)
        with swapped_parameters(params, perturbed_parameters(params, there, in_place=False)):
            perturbed = self.objective.backward(group, 1.0, at_w=False, reduce=False)
        finals = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        # The graph's saved weights are the parameters, which are back at w here. What no pass uses is in no graph.
        outputs = [(part, grad) for part, grad in zip(eps, finals, strict=True) if part.requires_grad]
        curvature: tuple[Tensor | None, ...] = torch.autograd.grad(
            [part for part, _ in outputs], params, [grad for _, grad in outputs], allow_unused=True
        )
        for param, grad, bend, before in zip(params, finals, curvature, earlier, strict=True):
            if param.grad is None and bend is None:
                param.grad = before
                continue
            total = grad if bend is None else grad.add_(bend)
            param.grad = total * share if before is None else before.add_(total, alpha=share)
        return perturbed.loss, grad_norm, eps_norm

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
