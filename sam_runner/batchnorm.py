"""Batch-norm running statistics under SAM: updated by the pass at w only, and once per step.

A SAM step runs the network at w and again at w + eps, and with groups or micro-batches several times each. Left alone,
every one of those passes would update the running statistics, so they would describe perturbed weights and count a
batch several times. Here the passes at w + eps normalise by the batch without touching the buffers, and k passes at w
make one update with the mean of their k batch statistics, as k devices of a data-parallel run would after averaging.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
    """The running statistics of all batch-norm layers of a model (BatchNorm1d/2d/3d, SyncBatchNorm).

    Layers in evaluation mode (frozen statistics) and layers that keep none are left as they are.

    Args:
        model: The network; its set of layers must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        self._total: list[Tensor] = []
        self._weight = 0.0
        self._collecting = False

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Passes in the body normalise by their batch, as in training, and leave every buffer alone."""
        layers = [layer for layer in self._layers if layer.training and layer.track_running_stats]
        for layer in layers:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in layers:
                layer.track_running_stats = True

    @contextmanager
    def one_update(self, num_passes: int, weight: float = 1.0) -> Iterator[None]:
        """All passes in the body together count as one batch.

        After each of them `observe` has to be called. With a single pass this is exactly
        what PyTorch does by itself. If the body raises, the statistics are those from before it.

        Args:
            num_passes: Passes in the body that are not `frozen`.
            weight: What they count in the mean over ranks, see `Batch`: where ranks have different numbers of images,
                the mean of the ranks' running statistics is that of all images only with it.
        """
        layers = [layer for layer in self._layers if layer.training]
        if (num_passes <= 1 and weight == 1) or not layers:
            yield
            return
        # With momentum 1 a pass leaves its own batch statistics in the buffers, where `observe` finds them.
        before = self._clone(layers)
        momenta = [layer.momentum for layer in layers]
        counts = [None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone() for layer in layers]
        self._total, self._weight, self._collecting = [torch.zeros_like(buffer) for buffer in before], 0.0, True
        for layer in layers:
            layer.momentum = 1.0
        try:
            yield
            new = torch._foreach_div(self._total, self._weight / weight) if self._weight else before
        except BaseException:
            new = before
            raise
        finally:
            for layer, momentum, count in zip(layers, momenta, counts, strict=True):
                layer.momentum = momentum
                if count is not None and layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.copy_(count + (new is not before))
            self._write_back(layers, before, list(new))
            self._total, self._collecting = [], False

    def observe(self, num_examples: int) -> None:
        """Take in the statistics of the pass just made, weighted by its examples; only inside `one_update`."""
        if not self._collecting:
            return
        torch._foreach_add_(
            self._total, self._buffers([layer for layer in self._layers if layer.training]), alpha=num_examples
        )
        self._weight += num_examples

    def snapshot(self) -> list[Tensor]:
        """Copies of all buffers, for `restore`."""
        counts = [layer.num_batches_tracked for layer in self._layers if layer.num_batches_tracked is not None]
        return [*self._clone(self._layers), *(count.clone() for count in counts)]

    def restore(self, snapshot: list[Tensor], where: Tensor) -> None:
        """Put the buffers of a `snapshot` back if `where`, a 0-dim bool tensor on the device, is true."""
        counts = [layer.num_batches_tracked for layer in self._layers if layer.num_batches_tracked is not None]
        for buffer, saved in zip([*self._buffers(self._layers), *counts], snapshot, strict=True):
            buffer.copy_(torch.where(where, saved, buffer))

    @staticmethod
    def _buffers(layers: list[_BatchNorm]) -> list[Tensor]:
        return [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]

    def _clone(self, layers: list[_BatchNorm]) -> list[Tensor]:
        return [buffer.clone() for buffer in self._buffers(layers)]

    def _write_back(self, layers: list[_BatchNorm], before: list[Tensor], new: list[Tensor]) -> None:
        """Running = (1 - momentum) before + momentum new; momentum None is the cumulative mean over batches."""
        factors: list[Tensor | float] = []
        for layer in layers:
            count = layer.num_batches_tracked
            factor = layer.momentum if layer.momentum is not None or count is None else 1 / count.clamp(min=1)
            factors += [1.0 if factor is None else factor] * 2
        for buffer, old, mean, factor in zip(self._buffers(layers), before, new, factors, strict=True):
            buffer.copy_(old if mean is old else torch.lerp(old, mean, factor))
