"""The CIFAR residual networks of He, Zhang, Ren and Sun (CVPR 2016), section 4.2: ResNet-20, 32, 44, 56, 110."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.models.layers.initialisation import Init, initialise
from sam_runner.models.layers.stages import build_stages


class _Block(nn.Module):
    """Two 3x3 convolutions and an identity shortcut; it subsamples and pads with zeros where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.new_channels:
            half = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(branch + x)


class ResNetCifar(nn.Module):
    """Residual network of depth 6n + 2 for small images: three stages of n blocks with 16, 32 and 64 channels.

    Parameters for CIFAR-10: 0.27 M (20), 0.46 M (32), 0.66 M (44), 0.85 M (56), 1.7 M (110), as the paper's Table 6.

    Args:
        num_classes: C, the width of the output.
        in_channels: Channels of the input.
        depth: 6n + 2.
        init: See `sam_runner.models.layers.initialisation.initialise`; ``fan_in`` as the paper says.

    Shape:
        (N, in_channels, H, W) -> (N, num_classes).

    Raises:
        ValueError: Where `depth` is not 6n + 2.
    """

    def __init__(self, num_classes: int, in_channels: int, *, depth: int = 20, init: Init = "fan_in") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), not {depth}")
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = build_stages(16, (16, 32, 64), (depth - 2) // 6, _Block)
        self.head = nn.Linear(64, num_classes)
        initialise(self, self.head, init)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits of the images."""
        features = torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(images_NCHW)), 1), 1)
        logits: Tensor = self.head(features)
        return logits
