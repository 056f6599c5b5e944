"""Deep pyramidal residual networks (Han, Kim and Kim, CVPR 2017), with and without ShakeDrop."""

from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.model import Init
from sam_runner.models.layers.initialisation import initialise
from sam_runner.models.layers.pooling import mean_over_pixels
from sam_runner.models.layers.shake import ShakeDrop


def _branch(inputs: int, channels: int, stride: int, *, bottleneck: bool) -> nn.Sequential:
    """Return the residual branch of a block: batch norm first and last, and no ReLU before the first convolution."""
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
    """A residual block with ShakeDrop on its branch and a shortcut without weights.

    The shortcut averages 2x2 pixels where the stride is 2, and appends channels of zeros.
    """

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
    """PyramidNet for small images: each of the B blocks adds alpha/B channels, from 16 to 16 + alpha.

    Parameters for CIFAR-10: 26.2 M (272, alpha 200, bottleneck), 28.5 M (110, alpha 270), 3.9 M (110, alpha 84), 1.8 M
    (110, alpha 48). The numbers of channels are rounded, as in the SAM paper's code. The PyramidNet paper truncates
    them, which gives 26.0, 28.3, 3.8 and 1.7 M (its Table 4).

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        depth: Number of layers with weights: 9n + 2 with bottleneck blocks, otherwise 6n + 2.
        alpha: Number of channels that the blocks add to the 16 of the stem.
        bottleneck: Use blocks of 1x1, 3x3 and 1x1 convolutions with four times as many output channels, instead of
            two 3x3 convolutions.
        shakedrop: Probability that ShakeDrop scales the branch of the last block, in [0, 1]; for the l-th of B blocks
            it is l/B of that (the ShakeDrop paper uses 0.5). 0: no ShakeDrop.
        init: Distribution of the initial weights, see `sam_runner.models.layers.initialisation.initialise`.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If `depth` has another form.
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
        """Return the logits (N, C) of the images."""
        features = F.relu(self.bn(self.blocks(self.stem(images_NCHW))))
        logits: Tensor = self.head(mean_over_pixels(features))
        return logits
