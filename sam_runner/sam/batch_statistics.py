"""Buffers of a network under SAM: running statistics and all other state that a forward pass writes.

A SAM step evaluates the model at w and at w + eps, each several times with groups or micro-batches. By default every
pass updates the buffers, so they would describe perturbed weights. Here all buffers belong to the pass at w:

- A further pass starts from the buffers that the first pass started from, as it starts from the same random state. Its
  writes are discarded.
- A backward pass leaves no trace in the buffers either: activation checkpointing recomputes parts of the network there,
  from the buffers that the forward pass started from.
- k passes at w (groups, micro-batches) make one update of the running statistics of batch norm and instance norm with
  the mean of their k statistics, as k devices of a data-parallel run do after averaging. The vectors of spectral norm
  are updated by the first of them (`sam_runner.sam.spectral_norm`). Any other buffer is updated by each of them in
  turn, as in plain training.

Not covered are Python attributes of modules, which every pass changes; buffers outside of modules; and modules that are
added after construction.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sam_runner.sam.network.buffers import (
    Values,
    are_alike,
    copy_buffers,
    copy_values,
    swapped_buffers,
    write_buffers,
)
from sam_runner.sam.spectral_norm import PowerIterations

Norm = _BatchNorm | _InstanceNorm
# In training these forward methods write the statistics and never read them.
WRITING_FORWARDS = (_BatchNorm.forward, _InstanceNorm.forward, SyncBatchNorm.forward)


class RunningStatistics:
    """Controls which passes update the buffers of a model.

    Layers in evaluation mode (frozen statistics) and layers without statistics are not changed. A layer that one pass
    uses twice is updated twice, as in PyTorch.

    Args:
        model: The model; no module may be added or removed afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._layers = [module for module in modules if isinstance(module, Norm) and module.running_mean is not None]
        self._power = PowerIterations(model)
        self._writing = [layer for layer in self._layers if type(layer).forward in WRITING_FORWARDS]
        writing = {id(layer) for layer in self._writing}
        self._modules = modules
        self._stateful = [module for module in modules if id(module) not in writing]
        self._scratch: dict[str, Values] = {}
        self._mean: _Mean | None = None
        self._is_in_step = False
        self._start: Values | None = None

    @property
    def normalises_by_batch(self) -> bool:
        """Whether a layer normalises by the batch of one process, which must have more than one value per channel."""
        return any(
            isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm) and layer.training
            for layer in self._modules
        )

    @property
    def has_running_statistics(self) -> bool:
        """Whether a layer updates running statistics in training; layers in evaluation mode do not."""
        return any(layer.training for layer in self._layers)

    @property
    def has_synchronised_layers(self) -> bool:
        """Whether a layer normalises by the batches of all processes, so that every pass needs all processes."""
        return any(isinstance(layer, SyncBatchNorm) and layer.training for layer in self._modules)

    @contextmanager
    def discard_updates(self) -> Iterator[None]:
        """Start from the buffers that the first pass of the group started from, and discard all writes in the context.

        Outside of a step, start from the present buffers.
        """
        with self._power.pause(), self._discard_writes(self.copy_group_start(), "forward"):
            yield

    def begin_group(self) -> None:
        """Store copies of the buffers before the first pass of a group."""
        if self._is_in_step:
            self._start = self.copy_start()

    @contextmanager
    def single_statistics_update(self, num_passes: int, weight: float = 1.0) -> Iterator[None]:
        """Make one update of the running statistics, with the mean of the statistics of all passes in the context.

        Each pass must be inside `accumulate_statistics` or `discard_updates`. One pass makes exactly PyTorch's own
        update. After several passes, an exception in the context restores the statistics.

        Args:
            num_passes: Number of passes in the context outside of `discard_updates`.
            weight: Weight of the rank's batch in the mean over ranks, see `sam_runner.sam.batch.Batch`. If ranks have
                different numbers of examples, the weight makes the mean of their running statistics a mean over
                examples.
        """
        layers = [layer for layer in self._layers if layer.training]
        self._is_in_step = True
        try:
            with self._power.single_iteration():
                if (num_passes <= 1 and weight == 1) or not layers:
                    yield
                    return
                self._mean = mean = _Mean(_buffers(layers), _counts(layers), weight)
                try:
                    yield
                    mean.write()
                except BaseException:
                    mean.restore()
                    raise
        finally:
            self._mean, self._start, self._is_in_step = None, None, False

    @contextmanager
    def accumulate_statistics(self, num_examples: int, *, keep_graph: bool = False) -> Iterator[None]:
        """Add the statistics of the forward pass in the context to the update, weighted by its number of examples.

        Args:
            num_examples: Number of examples of the pass.
            keep_graph: Whether the graph of the pass is needed after another pass. The pass then writes copies of the
                buffers, which are copied back: a buffer that a graph has saved must not be overwritten.
        """
        if self._mean is not None:
            self._mean.begin()
        if keep_graph:
            values = copy_buffers(self._modules)
            with swapped_buffers(values):
                yield
                values = [(module, dict(module._buffers)) for module, _ in values]
            write_buffers(values)
        else:
            yield
        self._power.end_pass()
        if self._mean is not None:
            self._mean.add(num_examples)

    def copy_group_start(self) -> Values:
        """Return copies of the buffers from which the passes of the group started, for `recompute_from`."""
        return self.copy_start() if self._start is None else copy_values(self._kept_caches(self._start))

    def copy_start(self) -> Values:
        """Return copies of all buffers that a forward pass can read, for `recompute_from`.

        Writing layers in training read none.
        """
        return copy_buffers(self._stateful, self._power.slots)

    @contextmanager
    def recompute_from(self, start: Values) -> Iterator[None]:
        """Make a backward pass in the context: recomputed layers start from `start`, and their writes are discarded.

        Args:
            start: Result of `copy_start` before the forward pass; it is overwritten.
        """
        with self._power.pause(), self._discard_writes(self._kept_caches(start), "backward"):
            yield

    @contextmanager
    def _discard_writes(self, start: Values, purpose: str) -> Iterator[None]:
        """Let the modules hold `start` and scratch tensors inside the context."""
        with swapped_buffers(start), swapped_buffers(self._scratch_values(purpose)):
            yield

    @staticmethod
    def _kept_caches(start: Values) -> Values:
        """Return `start` without the non-persistent buffers that have another shape now.

        Such a buffer is a cache (a table of positions, say) that a longer input has extended. The module may remember
        its length in an attribute.
        """
        return [
            (
                module,
                {
                    name: value
                    for name, value in slots.items()
                    if not (
                        name in module._non_persistent_buffers_set
                        and value is not None
                        and (now := module._buffers.get(name)) is not None
                        and now.shape != value.shape
                    )
                },
            )
            for module, slots in start
        ]

    def _scratch_values(self, purpose: str) -> Values:
        """Return tensors that writing layers in training may write; they are never read.

        Forward and backward pass have different ones, since autograd saves the running statistics of a forward pass.
        """
        layers = [layer for layer in self._writing if layer.training and layer.track_running_stats]
        if not layers:
            return []
        scratch = self._scratch.get(purpose)
        if scratch is None or len(scratch) != len(layers) or not _fits(scratch, layers):
            self._scratch[purpose] = scratch = copy_buffers(layers)
        return scratch

    def identities(self) -> list[int]:
        """Return the ids of the buffers' tensors, to find out whether a buffer was replaced."""
        return [id(buffer) for module in self._modules for buffer in module._buffers.values()]

    def snapshot(self) -> Values:
        """Return copies of all buffers, for `restore`."""
        return copy_buffers(self._modules)

    @torch.no_grad()
    def restore(self, snapshot: Values, where: Tensor) -> None:
        """Restore the buffers of a `snapshot` if `where`, a 0-dim bool tensor on the device, is true."""
        for module, slots in snapshot:
            for name, saved in slots.items():
                buffer = module._buffers.get(name)
                is_sparse = saved is not None and saved.layout != torch.strided
                if saved is not None and buffer is not None and not is_sparse and are_alike(buffer, saved):
                    buffer.copy_(torch.where(where, saved, buffer))
                elif buffer is not saved and where:  # another tensor now, or a sparse one: decided on the host
                    module._buffers[name] = saved


def _fits(scratch: Values, layers: Sequence[Norm]) -> bool:
    """Return whether scratch tensors belong to `layers` and have their dtype and device."""
    first, (_, slots) = layers[0], scratch[0]
    mean, own = slots["running_mean"], first.running_mean
    same_layers = all(layer is module for layer, (module, _) in zip(layers, scratch, strict=True))
    return same_layers and mean is not None and own is not None and are_alike(mean, own)


class _Mean:
    """Mean of the buffers after several passes that all start from the same buffers.

    The buffers after a pass are an affine function of its batch statistics. Their mean is therefore the result of one
    pass with the mean statistics, for any momentum and any number of uses of a layer. A weight must multiply the
    statistics of the passes but not the old buffers. Therefore each pass starts from the buffers divided by the weight,
    and the result is multiplied by the weight.

    Args:
        buffers: Running means and variances.
        counts: Numbers of batches tracked, int64.
        weight: Weight of the batch statistics, > 0.
    """

    def __init__(self, buffers: list[Tensor], counts: list[Tensor], weight: float) -> None:
        self._buffers, self._counts, self._weight = buffers, counts, weight
        self._before = [buffer.clone() for buffer in buffers]
        self._counts_before = [count.clone() for count in counts]
        self._start = self._before if weight == 1 else list(torch._foreach_div(self._before, weight))
        self._total = [torch.zeros_like(buffer) for buffer in buffers]
        self._num_examples = 0

    def begin(self) -> None:
        """Reset the buffers to the start of a pass; the backward pass of the previous one must be over."""
        _copy(self._buffers, self._start)
        _copy(self._counts, self._counts_before)

    def add(self, num_examples: int) -> None:
        """Add the buffers after a pass, weighted by its number of examples."""
        torch._foreach_add_(self._total, self._buffers, alpha=num_examples)
        self._num_examples += num_examples

    def write(self) -> None:
        """Write the mean into the buffers; the counts are those of the last pass."""
        if self._num_examples:
            _copy(self._buffers, torch._foreach_mul(self._total, self._weight / self._num_examples))

    def restore(self) -> None:
        """Restore the buffers from before the first pass."""
        _copy(self._buffers, self._before)
        _copy(self._counts, self._counts_before)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def _buffers(layers: Sequence[Norm]) -> list[Tensor]:
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]


def _counts(layers: Sequence[Norm]) -> list[Tensor]:
    return [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
