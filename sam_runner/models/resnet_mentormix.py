"""The wide "ResNet-32" of work on label noise that the SAM paper follows (Jiang, Huang, Liu and Yang, ICML 2020).

Their public code (MentorMix) calls it resnet32, but it has 29 million weights where the ResNet-32 of He et al. has half
a million. Which of the two the SAM paper's Table 4 used is not said.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.models.layers.initialisation import Init, initialise
from sam_runner.models.layers.stages import build_stages

LEAK = 0.1
BN_EPS = 1e-3


class _Block(nn.Module):
    """Batch norm, leaky ReLU, 3x3 convolution, twice; the shortcut averages pixels and pads with zeros.

    The network's first block, which has the `stem`'s channels, activates before it normalises, and its shortcut starts
    from there.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, stem: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=BN_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=BN_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.stride, self.new_channels, self.first = stride, outputs - inputs, inputs == stem

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = active = self.bn1(F.leaky_relu(x, LEAK))
        else:
            active = F.leaky_relu(self.bn1(x), LEAK)
        branch: Tensor = self.conv2(F.leaky_relu(self.bn2(self.conv1(active)), LEAK))
        if self.new_channels:
            half = self.new_channels // 2
            x = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride != 1 else x
            x = F.pad(x, (0, 0, 0, 0, half, self.new_channels - half))
        return branch + x


class ResNetMentorMix(nn.Module):
    """Pre-activation residual network of depth 6n + 2: a stem of W channels, three stages of n blocks with 2W, 4W, 8W.

    29.4 M parameters for CIFAR-10 with depth 32 and W = 64.

    Args:
        num_classes: C, the width of the output.
        in_channels: Channels of the input.
        depth: 6n + 2.
        width: W.
        init: See `sam_runner.models.layers.initialisation.initialise`.

    Shape:
        (N, in_channels, H, W) -> (N, num_classes).

    Raises:
        ValueError: Where `depth` is not 6n + 2.
    """

    def __init__(
        self, num_classes: int, in_channels: int, *, depth: int = 32, width: int = 64, init: Init = "fan_out"
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, ...), not {depth}")
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        widths = [width * stage for stage in (2, 4, 8)]
        self.blocks = build_stages(width, widths, (depth - 2) // 6, partial(_Block, stem=width))
        self.bn = nn.BatchNorm2d(widths[-1], eps=BN_EPS)
        self.head = nn.Linear(widths[-1], num_classes)
        initialise(self, self.head, init)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits of the images."""
        features = F.leaky_relu(self.bn(self.blocks(self.stem(images_NCHW))), LEAK)
        logits: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits
