"""The wide "ResNet-32" of MentorMix (Jiang, Huang, Liu and Yang, ICML 2020), for training with label noise.

The SAM paper follows MentorMix in its experiments on label noise (Table 4), but does not say which ResNet-32 it uses.
The public code of MentorMix calls this network resnet32; it has 29 million weights, the ResNet-32 of He et al. (2016)
half a million.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.model import Init
from sam_runner.models.layers.initialisation import initialise
from sam_runner.models.layers.pooling import mean_over_pixels
from sam_runner.models.layers.stages import build_stages

LEAK = 0.1  # negative slope of the leaky ReLUs
BN_EPS = 1e-3


class _Block(nn.Module):
    """A pre-activation residual block: batch norm, leaky ReLU and 3x3 convolution, twice, with a weightless shortcut.

    Where shapes change, the shortcut averages pixels and pads the channels with zeros. The first block of the network,
    which is the one with `stem` input channels, applies the leaky ReLU before the batch norm; its shortcut starts after
    both.
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

    With depth 32 and W = 64 it has 29.4 M parameters for CIFAR-10.

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        depth: Number of layers with weights, 6n + 2.
        width: Number of channels of the stem, W.
        init: Distribution of the initial weights, see `sam_runner.models.layers.initialisation.initialise`.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If `depth` is not 6n + 2.
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
        """Return the logits (N, C) of the images."""
        features = F.leaky_relu(self.bn(self.blocks(self.stem(images_NCHW))), LEAK)
        logits: Tensor = self.head(mean_over_pixels(features))
        return logits
