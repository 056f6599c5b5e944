"""Running statistics of normalisation layers under SAM: updated by the first pass only, and once per step.

A SAM step evaluates the model at w and at w + eps, each several times with groups or micro-batches. By default every
pass updates the running statistics, so they would describe perturbed weights and count a batch several times. Here
passes at w + eps normalise by the batch and leave the buffers unchanged. k passes at w make one update with the mean of
their k batch statistics, as k devices of a data-parallel run do after averaging. This covers batch norm, instance norm
with running statistics, and the vectors of spectral norm (`sam_runner.sam.spectral_norm`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sam_runner.sam.spectral_norm import PowerIterations

Norm = _BatchNorm | _InstanceNorm


class RunningStatistics:
    """Controls which forward passes update the running statistics of a model.

    Layers in evaluation mode (frozen statistics) and layers without statistics are not changed. A layer that one pass
    uses twice is updated twice, as in PyTorch.

    Args:
        model: The model; no normalisation layer may be added or removed afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if isinstance(module, Norm)]
        self._layers = [module for module in modules if module.running_mean is not None]
        self._power = PowerIterations(model)
        self._mean: _Mean | None = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Normalise by the batch, as in training, without updating any buffer in the context."""
        layers = [layer for layer in self._layers if layer.training and layer.track_running_stats]
        buffers = [(layer, layer.running_mean, layer.running_var) for layer in layers if _ignores_tracking(layer)]
        for layer in layers:
            layer.track_running_stats = False
        for layer, _, _ in buffers:
            layer.running_mean = layer.running_var = None
        try:
            with self._power.stopped():
                yield
        finally:
            for layer in layers:
                layer.track_running_stats = True
            for layer, mean, variance in buffers:
                layer.running_mean, layer.running_var = mean, variance

    @contextmanager
    def single_statistics_update(self, num_passes: int, weight: float = 1.0) -> Iterator[None]:
        """Make one update of all passes in the context, as if they were one batch.

        Each pass must be inside `accumulate_statistics` or `frozen`. One pass makes exactly PyTorch's own update. An
        exception in the context restores the statistics.

        Args:
            num_passes: Number of passes in the context that are not `frozen`.
            weight: Weight of the batch in the mean over ranks, see `sam_runner.sam.batch.Batch`. With it the mean of
                the ranks' running statistics describes all examples, also if ranks have different numbers of them.
        """
        layers = [layer for layer in self._layers if layer.training]
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
                self._mean = None

    @contextmanager
    def accumulate_statistics(self, num_examples: int) -> Iterator[None]:
        """Add the statistics of the forward pass in the context to the update, weighted by its number of examples."""
        if self._mean is not None:
            self._mean.begin()
        yield
        self._power.end_pass()
        if self._mean is not None:
            self._mean.add(num_examples)

    def snapshot(self) -> list[Tensor]:
        """Return copies of all buffers, for `restore`."""
        return [buffer.clone() for buffer in self._all()]

    def restore(self, snapshot: list[Tensor], where: Tensor) -> None:
        """Copy the buffers of a `snapshot` back if `where`, a 0-dim bool tensor on the device, is true."""
        for buffer, saved in zip(self._all(), snapshot, strict=True):
            buffer.copy_(torch.where(where, saved, buffer))

    def _all(self) -> list[Tensor]:
        return [*_buffers(self._layers), *_counts(self._layers), *self._power.vectors()]


class _Mean:
    """Mean of the buffers after several passes that all start from the same buffers.

    The buffers after a pass are an affine function of its batch statistics. Their mean is therefore the result of one
    pass with the mean statistics, for any momentum and any number of uses of a layer. To weight the statistics but not
    the old buffers, each pass starts from 1/weight of the buffers, and the result is multiplied by the weight.

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


def _ignores_tracking(layer: nn.Module) -> bool:
    """Return whether a layer updates its buffers even if it does not track statistics: torch's instance norm does."""
    return isinstance(layer, _InstanceNorm)


def _buffers(layers: Sequence[Norm]) -> list[Tensor]:
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]


def _counts(layers: Sequence[Norm]) -> list[Tensor]:
    return [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
