"""The training objective L_B(w) of a batch, and its gradient.

Everything between a batch and a gradient is here: autocast, loss scale, micro-batches, weight decay as part of the
loss, and which passes update the running statistics. `sam_runner.sam.method` decides at which weights it is evaluated.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import is_sharded, to_local
from sam_runner.sam.batch import Batch, join_outputs, map_tensors
from sam_runner.sam.batch_statistics import RunningStatistics
from sam_runner.sam.random_branches import find_random_branches, true_gradient


class Evaluation(NamedTuple):
    """L_B at some weights.

    Attributes:
        loss: Mean loss of the batch without weight decay, 0-dim, detached.
        outputs: What the model returned, detached, in the batch's order; logits (N, C) for a classifier. Outputs of
            micro-batches are joined by `sam_runner.sam.batch.join_outputs`.
    """

    loss: Tensor
    outputs: Any


def call_model(forward: Callable[..., Any], inputs: Any) -> Any:
    """Call `forward` with a batch's inputs, by the convention of `torch.func.functional_call`.

    A tuple holds the positional arguments, a dict the keyword arguments; anything else is the only argument. A tuple or
    dict that is itself the argument must be wrapped in a tuple of one element: ``(inputs,)``.
    """
    if isinstance(inputs, tuple):
        return forward(*inputs)
    if isinstance(inputs, dict):
        return forward(**inputs)
    return forward(inputs)


class Objective:
    """L_B(w) of a model: its gradient as tensors (`gradient`) or added to ``.grad`` (`backward`).

    Args:
        model: The network in training mode; w are its parameters that require gradients. Parameters should be float32
            or float64: at rho 0.05 the perturbation of a network with 36 M weights is 8e-6 per weight, which bfloat16
            weights cannot represent.
        loss: Maps (outputs, targets) to the mean loss of the examples, 0-dim; anything else raises ValueError in the
            first pass. Floating-point tensors in the outputs are promoted to at least float32 first.
        forward: Callable that replaces the model in all passes (the compiled or DistributedDataParallel model, say);
            None: the model. `call_model` says how it gets its arguments.
        autocast_dtype: bfloat16 or float16 for mixed precision; None: no autocast.
        scaler: Loss scaler for float16; None: no loss scale.
        num_chunks: Number of micro-batches that a full batch is evaluated in (gradient accumulation), >= 1.
        batch_size: Number of examples of a full batch; with `num_chunks` it gives the size of a micro-batch.
        no_sync: Context in which gradients are not averaged over ranks: ``no_sync`` of DistributedDataParallel.
        context: The processes that train together. Default: this process only.
        weight_decay: lambda of the term lambda/2 ||w||^2 over all parameters in the loss of every pass, as in the
            paper's code (flax_training.py); 0 if the base optimizer decays the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        *,
        forward: Callable[..., Any] | None = None,
        autocast_dtype: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        num_chunks: int = 1,
        batch_size: int = 1,
        no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
        context: DistributedContext = SINGLE_PROCESS,
        weight_decay: float = 0.0,
    ) -> None:
        self.model = model
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.device = self.params[0].device
        self.statistics = RunningStatistics(model)
        self._random_branches = find_random_branches(model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False) if scaler is None else scaler
        self._forward = model if forward is None else forward
        self._loss = loss
        self.autocast_dtype = autocast_dtype
        self._chunk_size = None if num_chunks == 1 else -(-batch_size // num_chunks)
        self._no_sync = no_sync
        self.context = context
        self.shards = context if is_sharded(self.params[0]) else SINGLE_PROCESS
        self._weight_decay = weight_decay

    def chunks(self, batch: Batch) -> list[Batch]:
        """Split `batch` into the micro-batches that it is evaluated in."""
        return batch.split(self._chunk_size)

    def evaluate(self, batch: Batch) -> Evaluation:
        """Return loss and outputs of `batch` at the current weights, without gradient; no buffer is modified.

        The model stays in training mode, so normalisation layers normalise by the batch.
        """
        chunks, parts = self.chunks(batch), []
        with torch.no_grad(), self.statistics.frozen(), self._no_sync():
            for chunk in chunks:
                outputs, loss = self._evaluate(chunk)
                parts.append(Evaluation(loss, outputs))
        return self._join(batch, chunks, parts)

    def gradient(
        self,
        batch: Batch,
        *,
        update_statistics: bool,
        create_graph: bool = False,
        shaken: bool = False,
        reduce: bool = False,
    ) -> tuple[Evaluation, list[Tensor], list[bool]]:
        """Return L_B, its gradient as tensors, and which parameters the passes used; ``.grad`` is not changed.

        Args:
            batch: B; its micro-batches together give one gradient.
            update_statistics: Whether this pass updates the running statistics of normalisation layers.
            create_graph: Keep the graph, so the gradient can be differentiated.
            shaken: Whether random branches (Shake-Shake, ShakeDrop) have their shaken gradient, as in `backward`.
                Otherwise they have their true gradient.
            reduce: Return the mean gradient over the examples of all ranks. Otherwise return this rank's gradient, from
                which each rank computes its own eps as in the paper.

        Returns:
            The evaluation; the gradient times the loss scale, one tensor per parameter in the memory format of the
            parameter (the local shard of a sharded one), zero for an unused parameter, owned by the caller; a flag per
            parameter, False if it is unused.
        """
        branches = [] if shaken else self._random_branches
        if create_graph:
            chunks, parts = self.chunks(batch), []
            total: list[Tensor] = []
            with true_gradient(branches):
                for scaled, part in self._passes(chunks, len(batch), update_statistics, reduce=False):
                    grads = torch.autograd.grad(scaled, self.params, create_graph=True, materialize_grads=True)
                    total = [old + new for old, new in zip(total, grads, strict=True)] if total else list(grads)
                    parts.append(part)
            return self._join(batch, chunks, parts), total, [grad.requires_grad for grad in total]
        before = [param.grad for param in self.params]
        try:
            for param in self.params:
                param.grad = None
            share = batch.weight if reduce else 1.0
            with true_gradient(branches):
                evaluation = self.backward(batch, share, update_statistics=update_statistics, reduce=reduce)
            used = [param.grad is not None for param in self.params]
            found = [to_local(torch.zeros_like(param) if param.grad is None else param.grad) for param in self.params]
        finally:
            for param, grad in zip(self.params, before, strict=True):
                param.grad = grad
        return evaluation, found, used

    def backward(self, batch: Batch, share: float, *, update_statistics: bool, reduce: bool) -> Evaluation:
        """Add `share` times the gradient of L_B (times the loss scale) to ``.grad``.

        Args:
            batch: B; its micro-batches together give one gradient.
            share: Factor of the gradient.
            update_statistics: Whether this pass updates the running statistics of normalisation layers.
            reduce: Replace all of ``.grad``, earlier summands included, by its mean over the ranks; the last
                micro-batch's backward pass overlaps with the communication.
        """
        chunks, parts = self.chunks(batch), []
        for scaled, part in self._passes(chunks, len(batch), update_statistics, reduce):
            (scaled if share == 1 else scaled * share).backward()
            parts.append(part)
        return self._join(batch, chunks, parts)

    def average_gradients(self) -> None:
        """Replace ``.grad`` by its mean over the ranks; needed if no `backward` did so."""
        self.context.all_reduce_mean([param.grad for param in self.params if param.grad is not None])

    def _passes(
        self, chunks: list[Batch], num_examples: int, update_statistics: bool, reduce: bool
    ) -> Iterator[tuple[Tensor, Evaluation]]:
        """Make one forward pass per micro-batch; yield its summand of L_B times the loss scale, and its evaluation."""
        for number, chunk in enumerate(chunks, 1):
            share = len(chunk) / num_examples
            # The context holds for the forward and the backward pass: the caller runs the latter before it resumes.
            with nullcontext() if reduce and number == len(chunks) else self._no_sync():
                count = self.statistics.accumulate_statistics(len(chunk))
                with count if update_statistics else self.statistics.frozen():
                    outputs, loss = self._evaluate(chunk)
                objective = loss + self._penalty() if self._weight_decay else loss
                if share != 1:
                    objective = objective * share
                yield self.scaler.scale(objective), Evaluation(loss.detach(), map_tensors(Tensor.detach, outputs))

    def _evaluate(self, chunk: Batch) -> tuple[Any, Tensor]:
        # Autocast caches cast weights until its context ends; a longer context would use those of w at w + eps.
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled):
            outputs = call_model(self._forward, chunk.inputs)
        outputs = map_tensors(_promote, outputs)
        loss = self._loss(outputs, chunk.targets)
        if loss.ndim:
            raise ValueError(
                f"the loss must return a 0-dim tensor, the mean over examples, not shape {tuple(loss.shape)}"
            )
        return outputs, loss

    def _penalty(self) -> Tensor:
        return self._weight_decay / 2 * torch.stack([param.square().sum() for param in self.params]).sum()

    @staticmethod
    def _join(batch: Batch, chunks: list[Batch], parts: list[Evaluation]) -> Evaluation:
        if len(parts) == 1:
            return parts[0]
        sizes = [len(chunk) for chunk in chunks]
        losses = [part.loss * (size / len(batch)) for part, size in zip(parts, sizes, strict=True)]
        return Evaluation(torch.stack(losses).sum(), join_outputs([part.outputs for part in parts], sizes))


def _promote(output: Tensor) -> Tensor:
    """Return a floating-point tensor in at least float32; other tensors unchanged."""
    if not output.is_floating_point():
        return output
    return output.to(torch.promote_types(output.dtype, torch.float32))
