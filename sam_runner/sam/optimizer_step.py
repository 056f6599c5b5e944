"""The base optimizer's step along the final gradient; a non-finite loss or gradient never changes the weights.

A fused optimizer decides this on the device: its kernels read a tensor that says whether to skip the step. torch made
this tensor for loss scalers.
"""

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sam_runner.distributed.context import DistributedContext
from sam_runner.distributed.sharding import to_local
from sam_runner.sam.perturbation import norm_of


def needs_closure(kind: type[torch.optim.Optimizer]) -> bool:
    """Return whether ``step`` of a class of optimizers cannot be called without a closure (LBFGS)."""
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


class OptimizerStep:
    """Unscale and clip the final gradient, and step if the loss and all gradients are finite.

    Args:
        optimizer: The base optimizer.
        scaler: Loss scaler; disabled except for float16.
        grad_clip: Largest norm of the gradient for the optimizer, > 0; None: no clipping.
        shards: The processes that hold the other shards of the gradient.

    Raises:
        ValueError: If the optimizer is a fused SGD with momentum and dampening.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        grad_clip: float | None,
        shards: DistributedContext,
    ) -> None:
        self._optimizer, self._scaler, self._grad_clip, self._shards = optimizer, scaler, grad_clip, shards
        self.prepare()

    def prepare(self) -> None:
        """Prepare for the parameter groups that the optimizer has now."""
        self._fused = all(group.get("fused") for group in self._optimizer.param_groups)
        if self._fused and isinstance(self._optimizer, torch.optim.SGD):
            _start_momentum(self._optimizer)

    def __call__(self, finite: Tensor, pending: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor, bool]:
        """Step along ``.grad``.

        Args:
            finite: Which of the step's other numbers are finite, bool, (k,).
            pending: What the caller adds to the weights or its state after the step; the step is skipped if one of
                these numbers is not finite, as for ``.grad``.

        Returns:
            The norm of ``.grad`` before clipping, without the loss scale; `finite` with one more entry, for ``.grad``
            and `pending`, (k + 1,); whether the loss scaler skipped the step (a bool on the host, False without a loss
            scaler). With a loss scaler the last entry is False if any other is.

        Raises:
            ValueError: If no parameter has a gradient.
        """
        params = [
            param for group in self._optimizer.param_groups for param in group["params"] if param.grad is not None
        ]
        if not params:
            raise ValueError("the loss depends on no parameter that the optimizer trains")
        is_pending_finite = self._are_finite(pending, finite)
        if self._scaler.is_enabled():
            return self._step_with_scaler(params, finite, is_pending_finite)
        norm = self._clip(params)
        finite = torch.cat([finite, (norm.isfinite() & is_pending_finite)[None]])
        if self._fused:
            self._optimizer.found_inf = (~finite.all()).to(torch.float32)  # type: ignore[attr-defined]
            try:
                self._optimizer.step()
            finally:
                del self._optimizer.found_inf  # type: ignore[attr-defined]
        elif finite.all():  # synchronises with the device
            self._optimizer.step()
        return norm, finite, False

    def _are_finite(self, tensors: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return whether all numbers are finite, bool, 0-dim; `like` is on the device."""
        tensors = [tensor for tensor in map(to_local, tensors) if tensor.numel() and tensor.is_floating_point()]
        if not tensors:
            return torch.ones((), dtype=torch.bool, device=like.device)
        return self._shards.all_reduce_and(get_total_norm(tensors, math.inf).isfinite())  # the largest cannot overflow

    def _step_with_scaler(
        self, params: list[nn.Parameter], finite: Tensor, is_pending_finite: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """Step with a loss scaler. It checks only ``.grad``, so NaN is added there if another number is not finite."""
        zero, is_finite = finite.new_zeros((), dtype=torch.float32), finite.all() & is_pending_finite
        params[0].grad.add_(zero.masked_fill(~is_finite, torch.nan))  # type: ignore[union-attr]
        self._scaler.unscale_(self._optimizer)
        norm = self._clip(params)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        skipped = self._scaler.get_scale() < scale
        return norm, torch.cat([finite, norm.isfinite()[None]]), skipped

    def _clip(self, params: list[nn.Parameter]) -> Tensor:
        """Clip ``.grad`` in place; return its norm before clipping."""
        grads = [to_local(param.grad) for param in params if param.grad is not None]
        norm = norm_of(grads, self._shards)
        if self._grad_clip is not None and self._shards.world_size == 1:
            clip_grads_with_norm_(params, self._grad_clip, norm)
        elif self._grad_clip is not None:  # clip_grads_with_norm_ does not accept local shards
            torch._foreach_mul_(grads, (self._grad_clip / (norm + 1e-6)).clamp(max=1.0))
        return norm


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Create the momentum buffers filled with zeros, which does not change the steps.

    The fused SGD of torch 2.14 creates uninitialised buffers, and does not initialise them if it skips the first step.
    """
    for group in optimizer.param_groups:
        if group["momentum"] and group["dampening"]:
            raise ValueError("fused SGD does not support dampening, since its momentum starts from 0: use fused=False")
        for param in group["params"]:
            if group["momentum"] and "momentum_buffer" not in optimizer.state[param]:
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
