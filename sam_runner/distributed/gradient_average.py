"""Mean of ``.grad`` over the ranks, sent in buckets while the backward pass computes further gradients.

torch's DistributedDataParallel requires that all ranks use all parameters in every pass, and that each gradient is
complete when it is first accumulated. Networks with stochastic depth, unused parameters or reentrant checkpointing do
not fulfil this; here they need no special treatment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from sam_runner.distributed.context import DistributedContext
from sam_runner.utils.errors import TrainingError

BUCKET_BYTES = 25 * 2**20  # size above which a bucket is full; DistributedDataParallel's default


class GradientAverage:
    """Replaces ``.grad`` of parameters by its mean over the ranks.

    A rank that did not use a parameter (``.grad`` is None) counts as zero. If no rank used it, ``.grad`` stays None, so
    the optimizer does not change the parameter, as in a single process.

    All ranks send the same buckets in the same order, each as soon as its gradients are complete. The first backward
    pass sends them at its end only: it finds out whether a gradient is accumulated more than once, as in reentrant
    checkpointing of shared weights, and is therefore complete at the end only.

    Args:
        params: Parameters that require gradients, in the model's order; the same on all ranks.
        context: The ranks.
    """

    def __init__(self, params: Sequence[nn.Parameter], context: DistributedContext) -> None:
        self._context = context
        # The backward pass computes the last parameters' gradients first.
        self._buckets = [_Bucket(part) for part in _split(list(reversed(params)))]
        self._bucket_of = {param: bucket for bucket in self._buckets for param in bucket.params}
        self._overlaps: bool | None = None
        self._num_accumulated: dict[nn.Parameter, int] = {}

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Average ``.grad``, with all that was accumulated before, over the ranks; the context has a backward pass.

        Without a backward pass in the context ``.grad`` is averaged as it is.

        Raises:
            TrainingError: If a gradient is accumulated again after it was sent.
        """
        self._num_accumulated = dict.fromkeys(self._bucket_of, 0)
        for bucket in self._buckets:
            bucket.work = None
        hooks = [param.register_post_accumulate_grad_hook(self._add) for param in self._bucket_of]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for bucket in self._buckets:
            if bucket.work is None:
                bucket.send(self._context)
        for bucket in self._buckets:
            bucket.receive()
        if self._overlaps is None and any(self._num_accumulated.values()):
            most = torch.tensor(max(self._num_accumulated.values()), device=self._buckets[0].flat.device)
            distributed.all_reduce(most, distributed.ReduceOp.MAX)
            self._overlaps = int(most) == 1

    def _add(self, param: Tensor) -> None:
        """Send all buckets that are complete now; a hook that autograd calls after it accumulated a gradient."""
        self._num_accumulated[param] += 1  # type: ignore[index]
        if not self._overlaps:
            return
        if self._num_accumulated[param] > 1:  # type: ignore[index]
            raise TrainingError(
                "a backward pass accumulates a gradient twice, which it did not in the first step: with several "
                "processes the parts of the network that are recomputed must not change\n"
                "  use torch.utils.checkpoint with use_reentrant=False"
            )
        for bucket in self._buckets:
            if bucket.work is not None:
                continue
            if not all(self._num_accumulated[other] for other in bucket.params):
                return
            bucket.send(self._context)


class _Bucket:
    """Gradients that are sent together.

    Attributes:
        params: Parameters of one dtype and device.
        flat: Message: the gradients divided by the number of ranks, and for each parameter whether it was used.
        work: The collective, or None if the bucket was not sent.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        sizes = [param.numel() for param in params]
        self.flat = params[0].new_zeros(sum(sizes) + len(params))
        *parts, self._used = self.flat.split([*sizes, len(params)])
        strides = [torch.empty_like(param, device="meta").stride() for param in params]  # dense, in the layout of param
        self._parts = [
            part.as_strided(param.shape, stride) for part, param, stride in zip(parts, params, strides, strict=True)
        ]
        self.work: Any = None

    @torch.no_grad()
    def send(self, context: DistributedContext) -> None:
        """Start to add up the message over the ranks."""
        is_used = [param.grad is not None for param in self.params]
        if all(is_used):
            self._used.fill_(1)
        else:
            self._used.copy_(torch.tensor(is_used), non_blocking=True)
        for param, part in zip(self.params, self._parts, strict=True):
            if param.grad is None:
                part.zero_()
            elif param.grad.layout != torch.strided:
                part.copy_(param.grad.to_dense())
        pairs = [
            (param.grad, part)
            for param, part in zip(self.params, self._parts, strict=True)
            if param.grad is not None and param.grad.layout == torch.strided
        ]
        if pairs:
            grads, parts = zip(*pairs, strict=True)
            torch._foreach_copy_(parts, grads)
        self.flat.div_(context.world_size)
        self.work = distributed.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Write the mean into ``.grad``. Only a rank with an unused parameter waits for the device."""
        self.work.wait()
        missing = [index for index, param in enumerate(self.params) if param.grad is None]
        if missing:
            used = self._used.tolist()
            for index in missing:
                if used[index] > 0:
                    self.params[index].grad = torch.empty_like(self.params[index])
        pairs = [
            (param.grad, part) for param, part in zip(self.params, self._parts, strict=True) if param.grad is not None
        ]
        if pairs:
            grads, parts = zip(*pairs, strict=True)
            torch._foreach_copy_(grads, parts)


def _split(params: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return consecutive parameters of one dtype and device as lists; each ends with `BUCKET_BYTES`."""
    parts: list[list[nn.Parameter]] = []
    size = 0
    for param in params:
        is_new = not parts or size >= BUCKET_BYTES
        if is_new or (param.dtype, param.device) != (parts[-1][0].dtype, parts[-1][0].device):
            parts.append([])
            size = 0
        parts[-1].append(param)
        size += param.numel() * param.element_size()
    return parts
