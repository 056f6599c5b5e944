"""Shake-Shake networks for CIFAR (Gastaldi, arXiv 1705.07485), e.g. 26 2x96d: depth 26, two branches, width 96."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.model import Init
from sam_runner.models.layers.initialisation import initialise
from sam_runner.models.layers.pooling import every_nth_pixel, mean_over_pixels
from sam_runner.models.layers.shake import ShakeShake
from sam_runner.models.layers.stages import build_stages


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return one of the two residual branches: ReLU, 3x3 convolution and batch norm, twice."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Shortcut(nn.Module):
    """The shortcut where shapes change: two 1x1 convolutions of subsampled pixels, concatenated and normalised.

    The first convolution takes every stride-th pixel, the second the pixels one below and one to the right of them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        # Subsample before the convolutions, not by their stride: in torch 2.14 oneDNN writes past its memory in 1x1
        # convolutions of 4 channels with stride 2.
        pixels, shifted = (every_nth_pixel(image, self.stride) for image in (x, F.pad(x, (-1, 1, -1, 1))))
        normalised: Tensor = self.bn(torch.cat([self.conv1(pixels), self.conv2(shifted)], 1))
        return normalised


class _Block(nn.Module):
    """A residual block: the random mixture of two branches, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch1, self.branch2 = _branch(inputs, outputs, stride), _branch(inputs, outputs, stride)
        self.mix = ShakeShake()
        self.shortcut = _Shortcut(inputs, outputs, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        mixture: Tensor = self.mix(self.branch1(x), self.branch2(x))
        return mixture + (x if self.shortcut is None else self.shortcut(x))


class ShakeShakeNet(nn.Module):
    """Shake-Shake of depth 6n + 2 for small images: three stages of n blocks with W, 2W and 4W channels.

    Parameters for CIFAR-10: 2.9 M (26 2x32d), 11.7 M (26 2x64d), 26.2 M (26 2x96d), as in the paper's Tables 1 and 2.
    Each example has its own random numbers. As in the SAM paper's code, the shortcut path contains no ReLU.

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        depth: Number of layers with weights, 6n + 2.
        width: Number of channels of the first stage, W.
        init: Distribution of the initial weights, see `sam_runner.models.layers.initialisation.initialise`.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If `depth` is not 6n + 2.
    """

    def __init__(
        self, num_classes: int, in_channels: int, *, depth: int = 26, width: int = 96, init: Init = "fan_out"
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, ...), not {depth}")
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.blocks = build_stages(16, [width * stage for stage in (1, 2, 4)], (depth - 2) // 6, _Block)
        self.head = nn.Linear(4 * width, num_classes)
        initialise(self, self.head, init)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits (N, C) of the images."""
        features = F.relu(self.blocks(self.stem(images_NCHW)))
        logits: Tensor = self.head(mean_over_pixels(features))
        return logits
