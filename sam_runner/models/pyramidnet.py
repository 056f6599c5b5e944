"""Deep pyramidal residual networks (Han, Kim and Kim, CVPR 2017), with and without ShakeDrop."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.models.layers.initialisation import Init, initialise
from sam_runner.models.layers.shake import ShakeDrop


def _branch(inputs: int, channels: int, stride: int, *, bottleneck: bool) -> nn.Sequential:
    """Batch norm first and last, and no ReLU before the first convolution."""
    if not bottleneck:
        return nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 4 * channels, 1, bias=False),
        nn.BatchNorm2d(4 * channels),
    )


class _Block(nn.Module):
    """A branch, which ShakeDrop may scale, and an identity shortcut: averages of 2x2 pixels, zeros as new channels."""

    def __init__(self, branch: nn.Sequential, new_channels: int, stride: int, keep: float) -> None:
        super().__init__()
        self.branch = branch
        self.drop = ShakeDrop(keep) if keep < 1 else nn.Identity()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.drop(self.branch(x))
        if self.stride != 1:
            x = F.avg_pool2d(x, 2, self.stride, ceil_mode=True)
        return branch + F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class PyramidNet(nn.Module):
    """PyramidNet for small images: every block has alpha/N channels more than the one before, from 16 to 16 + alpha.

    Parameters for CIFAR-10: 26.2 M (272, alpha 200, bottleneck), 28.5 M (110, alpha 270), 3.9 M (110, alpha 84), 1.8 M
    (110, alpha 48). The numbers of channels are rounded, as in the SAM paper's code; the PyramidNet paper truncates
    them, which gives 26.0, 28.3, 3.8 and 1.7 M (its Table 4).

    Args:
        num_classes: C, the width of the output.
        in_channels: Channels of the input.
        depth: 9n + 2 with bottleneck blocks, else 6n + 2.
        alpha: Channels that the last block has more than the stem.
        bottleneck: Blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide outside, instead of two 3x3.
        shakedrop: Probability that the last block is shaken; it falls linearly to the first (0.5 in the ShakeDrop
            paper). 0: none is.
        init: See `sam_runner.models.layers.initialisation.initialise`.

    Shape:
        (N, in_channels, H, W) -> (N, num_classes).

    Raises:
        ValueError: Where `depth` does not fit the blocks.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        depth: int = 272,
        alpha: int = 200,
        bottleneck: bool = True,
        shakedrop: float = 0.0,
        init: Init = "fan_out",
    ) -> None:
        super().__init__()
        layers = 9 if bottleneck else 6
        if depth < layers + 2 or (depth - 2) % layers:
            raise ValueError(f"depth must be {layers}n + 2 with bottleneck={str(bottleneck).lower()}, not {depth}")
        num_blocks = (depth - 2) // layers * 3
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        blocks: list[nn.Module] = []
        inputs = 16
        for number in range(1, num_blocks + 1):
            channels = round(16 + alpha * number / num_blocks)
            outputs = 4 * channels if bottleneck else channels
            stride = 2 if number > 1 and (number - 1) % (num_blocks // 3) == 0 else 1
            branch = _branch(inputs, channels, stride, bottleneck=bottleneck)
            blocks.append(_Block(branch, outputs - inputs, stride, 1 - shakedrop * number / num_blocks))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)
        initialise(self, self.head, init)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits of the images."""
        features = F.relu(self.bn(self.blocks(self.stem(images_NCHW))))
        logits: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits
