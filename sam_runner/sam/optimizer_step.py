"""The base optimizer's step along the final gradient, or none where a number of the step is not finite.

Whether it is made is decided on the device: torch's fused optimizers read it from a tensor, as they do with the loss
scaler.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import to_local
from sam_runner.sam.perturbation import norm_of


class Update:
    """What happens to the weights at the end of a step.

    Args:
        optimizer: The base optimizer.
        scaler: Loss scaler; disabled but for float16.
        grad_clip: Largest norm of the gradient that the optimizer is given; None: no limit.
        shards: The processes that have the other parts of the gradient.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        grad_clip: float | None,
        shards: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._optimizer, self._scaler, self._grad_clip, self._shards = optimizer, scaler, grad_clip, shards
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        if self._fused and isinstance(optimizer, torch.optim.SGD):
            _start_momentum(optimizer)

    def __call__(self, finite: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Step along ``.grad``.

        Args:
            finite: Which of the step's other numbers are finite, bool, (k,).

        Returns:
            ||gradient|| before clipping, without the loss scale; `finite` with the gradient's own finiteness at its
            end; whether the loss scaler skipped the step, which it tells the host.
        """
        params = [
            param for group in self._optimizer.param_groups for param in group["params"] if param.grad is not None
        ]
        if self._scaler.is_enabled():
            return self._scaled(params, finite)
        norm = self._clipped(params)
        finite = torch.cat([finite, norm.isfinite()[None]])
        if self._fused:
            self._optimizer.found_inf = (~finite.all()).to(torch.float32)  # type: ignore[attr-defined]
            try:
                self._optimizer.step()
            finally:
                del self._optimizer.found_inf  # type: ignore[attr-defined]
        elif finite.all():  # waits for the device
            self._optimizer.step()
        return norm, finite, False

    def _scaled(self, params: list[nn.Parameter], finite: Tensor) -> tuple[Tensor, Tensor, bool]:
        """With a loss scaler, which looks at ``.grad`` alone: what else is not finite is shown to it there."""
        nothing = finite.new_zeros((), dtype=torch.float32)
        params[0].grad.add_(nothing.masked_fill(~finite.all(), torch.nan))  # type: ignore[union-attr]
        self._scaler.unscale_(self._optimizer)
        norm = self._clipped(params)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        skipped = self._scaler.get_scale() < scale
        return norm, torch.cat([finite, norm.isfinite()[None]]), skipped

    def _clipped(self, params: list[nn.Parameter]) -> Tensor:
        """||gradient|| before it is clipped."""
        grads = [to_local(param.grad) for param in params if param.grad is not None]
        norm = norm_of(grads, self._shards)
        if self._grad_clip is not None and self._shards.world_size == 1:
            clip_grads_with_norm_(params, self._grad_clip, norm)
        elif self._grad_clip is not None:  # which does not take parts
            torch._foreach_mul_(grads, (self._grad_clip / (norm + 1e-6)).clamp(max=1.0))
        return norm


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Momentum that is zero before the first step, and the same from then on.

    torch's fused SGD makes it without filling it, and leaves it so where the first step is skipped (torch 2.14).
    """
    for group in optimizer.param_groups:
        if group["momentum"] and group["dampening"]:
            raise ValueError("fused SGD starts its momentum wrong with dampening: use fused=False")
        for param in group["params"]:
            if group["momentum"] and "momentum_buffer" not in optimizer.state[param]:
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
