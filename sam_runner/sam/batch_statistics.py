"""Batch-norm running statistics under SAM: updated by the pass at w only, and once per step.

A SAM step runs the network at w and again at w + eps, and with groups or micro-batches several times each. Left alone,
every one of those passes would update the running statistics, so they would describe perturbed weights and count a
batch several times. Here the passes at w + eps normalise by the batch without touching the buffers, and k passes at w
make one update with the mean of their k batch statistics, as k devices of a data-parallel run would after averaging.
Instance norm with running statistics is treated alike, and the vectors of spectral norm too (`sam_runner.sam.spectral_norm`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sam_runner.sam.spectral_norm import PowerIterations

Norm = _BatchNorm | _InstanceNorm


def freeze(model: nn.Module) -> int:
    """Keep batch norm in evaluation mode for good: it normalises by the running statistics and leaves them alone.

    The layers' own `train` is replaced, since ``model.train()`` reaches every layer. Their weights are still trained.

    Returns:
        The number of layers.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.eval()
        layer.train = MethodType(_stay, layer)  # type: ignore[method-assign]
    return len(layers)


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - the signature of train
    return layer


class RunningStatistics:
    """What the passes of a network leave in it: the running statistics of all batch-norm and instance-norm layers.

    Layers in evaluation mode (frozen statistics) and layers that keep none are left as they are. A layer that a pass
    uses twice counts twice, as in PyTorch.

    Args:
        model: The network; its set of layers must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if isinstance(module, Norm)]
        self._layers = [module for module in modules if module.running_mean is not None]
        self._power = PowerIterations(model)
        self._mean: _Mean | None = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Passes in the body normalise by their batch, as in training, and leave every buffer alone."""
        layers = [layer for layer in self._layers if layer.training and layer.track_running_stats]
        buffers = [(layer, layer.running_mean, layer.running_var) for layer in layers if _keeps_writing(layer)]
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
        """All passes in the body together count as one batch.

        Each of them has to be `counted` or `frozen`. With a single pass this is exactly what PyTorch does by itself. If
        the body raises, the statistics are those from before it.

        Args:
            num_passes: Passes in the body that are not `frozen`.
            weight: What they count in the mean over ranks, see `Batch`: where ranks have different numbers of images,
                the mean of the ranks' running statistics is that of all images only with it.
        """
        layers = [layer for layer in self._layers if layer.training]
        with self._power.once():
            if (num_passes <= 1 and weight == 1) or not layers:
                yield
                return
            self._mean = mean = _Mean(_buffers(layers), _counts(layers), weight)
            try:
                yield
                mean.write()
            except BaseException:
                mean.undo()
                raise
            finally:
                self._mean = None

    @contextmanager
    def accumulate_statistics(self, num_examples: int) -> Iterator[None]:
        """The body is one forward pass, whose statistics count by its examples in those of `single_statistics_update`."""
        if self._mean is not None:
            self._mean.begin()
        yield
        self._power.done()
        if self._mean is not None:
            self._mean.add(num_examples)

    def snapshot(self) -> list[Tensor]:
        """Copies of all buffers, for `restore`."""
        return [buffer.clone() for buffer in self._all()]

    def restore(self, snapshot: list[Tensor], where: Tensor) -> None:
        """Put the buffers of a `snapshot` back if `where`, a 0-dim bool tensor on the device, is true."""
        for buffer, saved in zip(self._all(), snapshot, strict=True):
            buffer.copy_(torch.where(where, saved, buffer))

    def _all(self) -> list[Tensor]:
        return [*_buffers(self._layers), *_counts(self._layers), *self._power.vectors()]


class _Mean:
    """The mean of the buffers that passes leave, where each begins with those from before.

    They are an affine function of a pass's batch statistics, so their mean is what one pass with the mean statistics
    would leave, whatever the momentum and however often a pass uses a layer. Begun with 1/weight of the buffers and
    then multiplied by the weight, the statistics have it and the buffers do not.

    Args:
        buffers: Running means and variances.
        counts: Numbers of batches.
        weight: Of the statistics.
    """

    def __init__(self, buffers: list[Tensor], counts: list[Tensor], weight: float) -> None:
        self._buffers, self._counts, self._weight = buffers, counts, weight
        self._before = [buffer.clone() for buffer in buffers]
        self._counts_before = [count.clone() for count in counts]
        self._start = self._before if weight == 1 else list(torch._foreach_div(self._before, weight))
        self._total = [torch.zeros_like(buffer) for buffer in buffers]
        self._num_examples = 0

    def begin(self) -> None:
        """Go back to where each pass begins; the backward pass of the one before must be over."""
        _copy(self._buffers, self._start)
        _copy(self._counts, self._counts_before)

    def add(self, num_examples: int) -> None:
        """Take in what a pass has left."""
        torch._foreach_add_(self._total, self._buffers, alpha=num_examples)
        self._num_examples += num_examples

    def write(self) -> None:
        """The mean; the counts are those of the last pass."""
        if self._num_examples:
            _copy(self._buffers, torch._foreach_mul(self._total, self._weight / self._num_examples))

    def undo(self) -> None:
        """What was there before."""
        _copy(self._buffers, self._before)
        _copy(self._counts, self._counts_before)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def _keeps_writing(layer: nn.Module) -> bool:
    """Whether a layer writes into its buffers without tracking statistics: torch's instance norm does."""
    return isinstance(layer, _InstanceNorm)


def _buffers(layers: Sequence[Norm]) -> list[Tensor]:
    return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]


def _counts(layers: Sequence[Norm]) -> list[Tensor]:
    return [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
