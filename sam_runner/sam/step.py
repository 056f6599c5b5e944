"""Sharpness-Aware Minimization: Algorithm 1 of Foret, Kleiner, Mobahi and Neyshabur (ICLR 2021, arXiv 2010.01412).

For a batch B, weights w and a base optimizer:

    g     = grad L_B(w)                                   first pass
    eps   = argmax over ||e||_p <= rho of e . g           `sam_runner.sam.perturbation.epsilon`, eq. 2
    g_SAM = grad L_B at w + eps                           second pass, eq. 3
    w     = base optimizer's step from w along g_SAM

`SamStep` does what SAM and its variants share; a `sam_runner.sam.method.Method` makes the choices in which they differ.
After the first step with rho > 0, a step does not synchronise with the device, with these exceptions:

- float16's loss scaler, which must know on the host whether it skips the step;
- base optimizers that are not fused;
- methods that decide on the host whether to make a second pass (AE-SAM);
- a parameter without gradient, if the method combines g and g_eps or several processes train together;
- ``keep_statistics``, if the network replaces a buffer by another tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_runner.distributed.sharding import to_local
from sam_runner.sam.batch import Batch, join_outputs
from sam_runner.sam.method import Group, GroupStats, Method, StepContext
from sam_runner.sam.methods.plain import Plain
from sam_runner.sam.methods.sam import Sam
from sam_runner.sam.network.trained_parameters import TrainedParameters
from sam_runner.sam.objective import Objective, Work
from sam_runner.sam.optimizer_step import OptimizerStep, needs_closure
from sam_runner.sam.perturbation import is_zero, require_radius

# In this order: a gradient at w that is not finite makes eps and the loss at w + eps NaN.
CHECKED = ("the loss at w", "the gradient at w", "the loss at w + eps", "the final gradient")
PLAIN = Plain()


@dataclass(frozen=True)
class Passes:
    """The passes of a step in units of its batch; a pass over a part of the batch counts as a fraction.

    Attributes:
        gradient: Gradients, each with a forward and a backward pass: 1 for the base optimizer, 2 for SAM.
        forward: Forward passes.
        backward: Backward passes; see `sam_runner.sam.objective.Work`.
    """

    gradient: float
    forward: float
    backward: float


@dataclass(frozen=True)
class StepStats:
    """Statistics of one step. Tensors are on the device (no synchronisation); scalars are 0-dim and floating point.

    Attributes:
        loss: L_B(w) of this rank's batch without weight decay; with `MomentumSam` L_B(w + eps).
        loss_perturbed: L_B(w + eps) likewise; equal to `loss` for a step with one pass.
        grad_norm: ||g||_2 at w without the loss scale; with several groups, the mean over them. If the step computes
            the final gradient alone, the norm of that gradient.
        eps_norm: ||eps||_2; with several groups, the mean over them.
        outputs: What the model returned in the first pass, in the order of the batch; logits (N, C) for a classifier.
        finite: Which of `CHECKED` are finite on all ranks, bool, (4,). The last entry also covers what the method adds
            to weights or state after the base optimizer's step. If one is not finite, the step changes neither weights
            nor state.
        skipped: Whether the loss scaler found a non-finite gradient and skipped the step; a bool on the host.
        passes: The passes that the step made; numbers on the host.
    """

    loss: Tensor
    loss_perturbed: Tensor
    grad_norm: Tensor
    eps_norm: Tensor
    outputs: Any
    finite: Tensor
    skipped: bool
    passes: Passes


class SamStep:
    """One optimizer step of Algorithm 1 or of a variant; with rho = 0, one step of the base optimizer.

    Args:
        objective: L_B and its gradient.
        optimizer: Any `torch.optim` optimizer whose step needs gradients only. w are its parameters that require
            gradients when a step begins, those of the loss included; other parameters are constants. The state of the
            optimizer does not depend on the method, so training can change between plain and SAM.
        method: Chooses perturbation, final gradient and passes. Default: SAM with p = 2. A method belongs to one step.
        group_size: m of m-sharpness, >= 1. Each group of m examples has its own eps and batch-norm statistics. The
            final gradient is the mean over the groups, weighted by their numbers of examples. This is the paper's
            setting of m examples per device, each with its own perturbation. None: the batch of each rank is one group.
        grad_clip: Largest norm of the gradient for the base optimizer, > 0 (the paper's code: 5.0); None: no clipping.
            The gradient from which eps is computed is never clipped.
        keep_statistics: Whether a step with a non-finite loss or gradient restores the running statistics of
            normalisation layers as well. With a loss scaler it always does.

    Raises:
        TypeError: If `objective` is no `Objective`, `method` is not a `Method`, or the optimizer needs a closure.
        ValueError: If `group_size` or `grad_clip` is out of range, the method does not work with groups, sharded
            weights or the network, the parameters of the optimizer cannot be trained (see
            `sam_runner.sam.objective.Objective`), or the optimizer is a fused SGD with dampening.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        method: Method | None = None,
        *,
        group_size: int | None = None,
        grad_clip: float | None = None,
        keep_statistics: bool = False,
    ) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(
                f"SamStep needs an Objective, not a {type(objective).__name__}: "
                "SamStep(Objective(model, loss), optimizer)"
            )
        if needs_closure(type(optimizer)):
            raise TypeError(
                f"{type(optimizer).__name__} needs a closure, which a step does not have: use another optimizer"
            )
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size={group_size}: accepted are 1, 2, ... and None")
        if grad_clip is not None and not grad_clip > 0:
            raise ValueError(f"grad_clip={grad_clip}: accepted are numbers above 0 and None")
        method = Sam() if method is None else method
        _require_method(method)
        if method.sync_perturbation and group_size is not None:
            raise ValueError("sync_perturbation computes one perturbation for the whole batch: use group_size=None")
        if method.descends_along_g and objective.has_random_branches:
            raise ValueError(
                f"{method.name} descends along g too. With random branches (Shake-Shake, ShakeDrop) g uses the "
                "forward scales in the backward pass, and the final gradient needs other random scales there"
            )
        if objective.shards.world_size > 1 and method.shard_blocker:
            raise ValueError(method.shard_blocker)
        self.objective = objective
        self.optimizer = optimizer
        self.method = method
        self.group_size = group_size
        self._optimizer_step = OptimizerStep(optimizer, objective.scaler, grad_clip, objective.shards)
        self._keep_statistics = keep_statistics or objective.scaler.is_enabled()
        self._trained = TrainedParameters(optimizer)
        self.update_parameters()
        method.prepare(objective)

    def update_parameters(self) -> bool:
        """Set w to the parameters that the optimizer trains now; return whether they have changed.

        Raises:
            ValueError: If they cannot be trained, or they have changed, but the method's state or the sharded weights
                need the old ones.
        """
        trained = self._trained.read_changes()
        if trained is None:
            return False
        objective, before = self.objective, self.objective.params
        objective.train_parameters(trained)
        changed = [id(param) for param in objective.params] != [id(param) for param in before]
        if changed and self.method.state:
            raise ValueError(
                f"the optimizer trains other parameters than the state of method {self.method.name} was made for\n"
                "  make a new step and a new method"
            )
        if changed and objective.shards.world_size > 1:
            raise ValueError(
                "with sharded weights the optimizer must train exactly the parameters of the model that required "
                "gradients when the objective was made\n  make a new objective and step"
            )
        self._optimizer_step.prepare()
        return changed

    def __call__(self, batch: Batch, rho: float | Tensor, number: int | None = None) -> StepStats:
        """Take one step.

        Args:
            batch: Examples on the parameters' device.
            rho: Radius, >= 0. A 0-dim tensor on the device must be > 0.
            number: Number of the step in its run, from 0. Only some methods need it.

        Raises:
            ValueError: If `rho` is negative or not finite, the method needs `number` and it is None, the batch cannot
                be split, the loss is not a 0-dim tensor or depends on no trained parameter; see also
                `update_parameters`.
            TypeError: If `batch` is no `Batch`, or `rho` is not a number.
            TrainingError: If a pass changes the inputs, the targets or a parameter that is not trained.
            RuntimeError: If gradients are switched off.
        """
        if not isinstance(batch, Batch):
            raise TypeError(f"step needs a Batch, not a {type(batch).__name__}: step(Batch(inputs, targets), rho)")
        if not torch.is_grad_enabled():
            raise RuntimeError("a step needs gradients: call it outside torch.no_grad() and torch.inference_mode()")
        self.update_parameters()
        return self.take(batch, *self.choose_method(rho, number), number)

    def choose_method(self, rho: float | Tensor, number: int | None) -> tuple[Method, float | Tensor]:
        """Return the method of a step and its radius: `Plain` for rho = 0, otherwise the step's own method.

        Args:
            rho: Radius that the schedule gives, see `__call__`.
            number: Number of the step in its run, from 0.

        Raises:
            ValueError: See `__call__`; also if the radius of the method is negative or not finite.
        """
        require_radius(rho)
        if is_zero(rho):
            return PLAIN, 0.0
        if self.method.needs_number and number is None:
            raise ValueError(f"method {self.method.name} needs the number of the step: call step(batch, rho, number)")
        radius = self.method.radius(rho, number, self.optimizer.param_groups[0]["lr"])
        require_radius(radius)
        return self.method, radius

    def take(self, batch: Batch, method: Method, radius: float | Tensor, number: int | None = None) -> StepStats:
        """Take one step with what `choose_method` returned; see `__call__`."""
        with self.objective.keep_other_gradients():
            return self._take(batch, method, radius, number)

    def _take(self, batch: Batch, method: Method, radius: float | Tensor, number: int | None) -> StepStats:
        objective = self.objective
        objective.work = work = Work()
        self.optimizer.zero_grad(set_to_none=True)
        method.staged.clear()
        context = StepContext(objective, self.optimizer, radius, number)
        gradient_sum: list[Tensor] = []
        batches = objective.split(batch, self.group_size)
        groups = [
            Group(
                context,
                part,
                batch.weight * len(part) / len(batch),
                is_first=part is batches[0],
                is_last=part is batches[-1],
                sync=method.sync_perturbation,
                gradient_sum=gradient_sum if method.combines and not is_zero(radius) else None,
            )
            for part in batches
        ]
        before = objective.statistics.snapshot() if self._keep_statistics else None
        accumulate = PLAIN.accumulate if is_zero(radius) else method.accumulate
        with objective.statistics.single_statistics_update(
            sum(len(objective.chunks(part)) for part in batches), batch.weight
        ):
            parts = [accumulate(group) for group in groups]
        if not groups[-1].is_averaged:
            objective.average_gradients()
        loss, loss_perturbed, grad_norm, eps_norm = _mean_over_groups(parts, batches, len(batch))
        finite = objective.context.all_reduce_and(torch.stack([loss, grad_norm, loss_perturbed]).isfinite())
        grad_norm = grad_norm / context.loss_scale
        if method.combines:
            self._combine(method, context, gradient_sum)
            gradient_sum.clear()  # frees g before the optimizer's step
        staged = [tensor for tensors in method.staged.values() for tensor in tensors]
        final_norm, finite, skipped = self._optimizer_step(finite, staged)
        if before is not None:
            objective.statistics.restore(before, where=~finite.all())
        method.commit(finite, context)
        return StepStats(
            loss=loss,
            loss_perturbed=loss_perturbed,
            grad_norm=final_norm if parts[0].grad_norm is None else grad_norm,
            eps_norm=eps_norm,
            outputs=join_outputs([part.evaluation.outputs for part in parts], [len(part) for part in batches]),
            finite=finite,
            skipped=skipped,
            passes=Passes(*(count / len(batch) for count in (work.gradient, work.forward, work.backward))),
        )

    def _combine(self, method: Method, context: StepContext, gradient_sum: list[Tensor]) -> None:
        """Let the method combine g and g_eps in ``.grad``."""
        if gradient_sum and not method.sync_perturbation:
            self.objective.context.all_reduce_mean(gradient_sum)
        params, shards = self.objective.params, self.objective.shards
        grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        combine: Callable[..., object] = method.combine
        first = list(gradient_sum) if gradient_sum else None
        if combine([to_local(grad) for grad in grads], first, context) is not None:
            raise TypeError(f"combine of method {method.name} returns a value: change `final` in place, return nothing")
        for param, grad in zip(params, grads, strict=True):
            # `combine` can give a gradient to a parameter that no pass at w + eps used. Otherwise it stays without one.
            if param.grad is None and shards.all_reduce_sum(to_local(grad).count_nonzero()) > 0:
                param.grad = grad


def _mean_over_groups(parts: list[GroupStats], batches: list[Batch], num_examples: int) -> tuple[Tensor, ...]:
    """Return loss at w, loss at w + eps, ||g|| and ||eps||, averaged over the groups by their numbers of examples."""
    rows = []
    for part in parts:
        loss = part.evaluation.loss
        grad_norm = torch.zeros_like(loss) if part.grad_norm is None else part.grad_norm
        rows.append((loss, part.loss_perturbed, grad_norm, part.eps_norm))
    if len(rows) == 1:
        return rows[0]
    shares = [len(batch) / num_examples for batch in batches]
    return tuple(
        torch.stack([value * share for value, share in zip(column, shares, strict=True)]).sum()
        for column in zip(*rows, strict=True)
    )


def _require_method(method: object) -> None:
    if not isinstance(method, Method):
        given = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise TypeError(
            f"SamStep needs an instance of a method, not {given}: SamStep(objective, optimizer, Asam()) with "
            "Asam of sam_runner.sam.methods"
        )
