"""The training objective L_B(w) on a batch, and its gradient.

Everything between a batch and a gradient is here: autocast, the loss scale, micro-batches, weight decay as part of the
loss, and which passes update the batch-norm statistics. `sam_runner.sam.step` decides at which weights it is evaluated.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.distributed.sharding import is_sharded, to_local
from sam_runner.models.layers.shake import ShakeLayer, true_gradient
from sam_runner.sam.batch_statistics import RunningStatistics

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images and their labels on the device.

    Attributes:
        images: Network input, the first axis is the example (NCHW for images), floating point.
        labels: Class of each example (int64, (N,)), or probabilities of the classes (floating point, (N, C)).
        weight: What the batch counts in the mean over ranks: its images by the mean number of a rank's.
    """

    images: Tensor
    labels: Tensor
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, size: int | None) -> list["Batch"]:
        """Consecutive parts of at most `size` examples, each of weight 1; None is the whole batch."""
        if size is None or size >= len(self):
            return [self]
        return [Batch(*part) for part in zip(self.images.split(size), self.labels.split(size), strict=True)]


class Evaluation(NamedTuple):
    """L_B at some weights.

    Attributes:
        loss: Mean loss over the batch without weight decay, 0-dim, detached.
        logits: (N, C), detached, in the batch's order.
    """

    loss: Tensor
    logits: Tensor


class Objective:
    """L_B(w) of a model, its gradient as tensors (`gradient`) or added to ``.grad`` (`backward`).

    Args:
        model: The network in training mode; its parameters that require gradients are w. Parameters are kept in float32
            (or float64): at rho 0.05 the perturbation of a 36 M weight network is 8e-6 per weight, which bfloat16
            weights cannot hold.
        loss: Maps (logits, labels) to the mean loss, 0-dim.
        forward: What is called with the images; the compiled model, say. Default the model itself.
        autocast_dtype: bfloat16 or float16 for mixed precision, None for none.
        scaler: Loss scaler for float16; disabled otherwise.
        num_chunks: Parts into which a batch is split to save memory (gradient accumulation).
        batch_size: Examples of a full batch; with `num_chunks` it sets the largest pass.
        no_sync: In data-parallel training the context in which gradients stay on their rank, the ``no_sync`` of
            DistributedDataParallel; default none.
        ranks: The processes that train together; default one.
        weight_decay: lambda of an added lambda/2 ||w||^2 over all parameters, in both passes as the paper's code has it
            (flax_training.py); 0 where the base optimizer decays the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        forward: Callable[[Tensor], Tensor] | None = None,
        autocast_dtype: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        num_chunks: int = 1,
        batch_size: int = 1,
        no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
        ranks: DistributedContext = SINGLE_PROCESS,
        weight_decay: float = 0.0,
    ) -> None:
        self.model = model
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.device = self.params[0].device
        self.statistics = RunningStatistics(model)
        self._shaken = [module for module in model.modules() if isinstance(module, ShakeLayer)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False) if scaler is None else scaler
        self._forward = model if forward is None else forward
        self._loss = loss
        self.autocast_dtype = autocast_dtype
        self._chunk_size = None if num_chunks == 1 else -(-batch_size // num_chunks)
        self._no_sync = no_sync
        self.ranks = ranks
        self.shards = ranks if is_sharded(self.params[0]) else SINGLE_PROCESS
        self._weight_decay = weight_decay

    def chunks(self, batch: Batch) -> list[Batch]:
        """The micro-batches that `batch` is evaluated in."""
        return batch.split(self._chunk_size)

    def gradient(
        self, batch: Batch, *, at_w: bool, create_graph: bool = False, reduce: bool = False
    ) -> tuple[Evaluation, list[Tensor]]:
        """L_B and its gradient (times the loss scale), one tensor per parameter; ``.grad`` is put back as it was.

        The tensors are the caller's own and laid out as the parameters; of sharded ones this process's part. Layers
        that are shaken (Shake-Shake, ShakeDrop) have their true gradient here, and in `backward` the shaken one.

        Args:
            batch: All of its chunks together form B.
            at_w: Whether this is the pass that the batch-norm running statistics come from.
            create_graph: Keep the graph, so that the gradient can be differentiated again.
            reduce: In data-parallel training take the mean gradient over all ranks' images, instead of this rank's own,
                with which each rank has its own eps, as in the paper.
        """
        parts = []
        if create_graph:
            total: list[Tensor] = []
            with true_gradient(self._shaken):
                for scaled, part in self._passes(batch, at_w, reduce=False):
                    grads = torch.autograd.grad(scaled, self.params, create_graph=True, materialize_grads=True)
                    total = [have + more for have, more in zip(total, grads, strict=True)] if total else list(grads)
                    parts.append(part)
            return self._gather(batch, parts), total
        before = [param.grad for param in self.params]
        try:
            for param in self.params:
                param.grad = None
            with true_gradient(self._shaken):
                evaluation = self.backward(batch, batch.weight if reduce else 1.0, at_w=at_w, reduce=reduce)
            found = [to_local(torch.zeros_like(param) if param.grad is None else param.grad) for param in self.params]
        finally:
            for param, grad in zip(self.params, before, strict=True):
                param.grad = grad
        return evaluation, found

    def backward(self, batch: Batch, share: float, *, at_w: bool, reduce: bool) -> Evaluation:
        """Add `share` times the gradient of L_B (times the loss scale) to ``.grad``; `gradient` tells the rest.

        With `reduce` the last chunk's pass turns all of ``.grad`` into its mean over the ranks, while it runs.
        """
        parts = []
        for scaled, part in self._passes(batch, at_w, reduce):
            (scaled if share == 1 else scaled * share).backward()
            parts.append(part)
        return self._gather(batch, parts)

    def average_gradients(self) -> None:
        """Turn ``.grad`` into its mean over the ranks, where no `backward` has done so."""
        self.ranks.all_reduce_mean([param.grad for param in self.params if param.grad is not None])

    def _passes(self, batch: Batch, at_w: bool, reduce: bool) -> Iterator[tuple[Tensor, Evaluation]]:
        """One forward pass per chunk: its part of the objective, times the loss scale, and what it evaluated to."""
        chunks = self.chunks(batch)
        for number, chunk in enumerate(chunks, 1):
            share = len(chunk) / len(batch)
            with nullcontext() if reduce and number == len(chunks) else self._no_sync():  # around both directions
                with self.statistics.accumulate_statistics(len(chunk)) if at_w else self.statistics.frozen():
                    logits, loss = self._evaluate(chunk)
                objective = loss + self._penalty() if self._weight_decay else loss
                if share != 1:
                    objective = objective * share
                yield self.scaler.scale(objective), Evaluation(loss.detach(), logits.detach())

    def _evaluate(self, chunk: Batch) -> tuple[Tensor, Tensor]:
        # The cache of cast weights lives as long as one autocast block; a longer one would serve w's at w + eps.
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled):
            logits = self._forward(chunk.images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, self._loss(logits, chunk.labels)

    def _penalty(self) -> Tensor:
        return self._weight_decay / 2 * torch.stack([param.square().sum() for param in self.params]).sum()

    @staticmethod
    def _gather(batch: Batch, parts: list[Evaluation]) -> Evaluation:
        if len(parts) == 1:
            return parts[0]
        loss = torch.stack([part.loss * (len(part.logits) / len(batch)) for part in parts]).sum()
        return Evaluation(loss, torch.cat([part.logits for part in parts]))
