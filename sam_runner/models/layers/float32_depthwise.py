"""Depthwise convolutions in float32 under bfloat16 autocast on a CPU, where their bfloat16 gradients are slow."""

from functools import partial

import torch
from torch import Tensor, nn


def compute_depthwise_in_float32(model: nn.Module) -> int:
    """Let the depthwise 2-D convolutions of a network compute in float32 on a CPU, also under autocast.

    With oneDNN the forward and backward pass of a depthwise 3x3 convolution with stride 2 take 6 to 40 times as long
    in bfloat16 as in float32, those of a 5x5 convolution 4 to 16 times as long (docs/performance.md).
    EfficientNet-Lite0 in bfloat16 trains twice as fast with this change. Without autocast, and on other devices, the
    layers compute as before.

    Args:
        model: The network. The method ``forward`` of its depthwise layers is replaced, except where a layer has a
            ``forward`` of its own already.

    Returns:
        The number of changed layers. A convolution is depthwise if it has one group per input channel, and several.
    """
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    layers = [layer for layer in convolutions if 1 < layer.groups == layer.in_channels and "forward" not in vars(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]  # a partial can be pickled
    return len(layers)


def _forward(layer: nn.Conv2d, images: Tensor) -> Tensor:
    forward = type(layer).forward
    if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return forward(layer, images)
    with torch.autocast("cpu", enabled=False):
        return forward(layer, images.float())
