"""Frozen batch-norm statistics, for fine-tuning."""

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batchnorm(model: nn.Module) -> int:
    """Keep all batch-norm layers in evaluation mode for good: they use the running statistics and never update them.

    The ``train`` method of each layer is replaced, since ``model.train()`` reaches every layer. The weights of the
    layers are still trained.

    Returns:
        The number of batch-norm layers.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.eval()
        layer.train = partial(_ignore_mode, layer)  # type: ignore[method-assign]  # a partial can be pickled
    return len(layers)


def _ignore_mode(layer: _BatchNorm, mode: bool = True) -> _BatchNorm:  # noqa: ARG001 - the signature of train
    return layer
