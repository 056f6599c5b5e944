"""Residual networks for CIFAR (He, Zhang, Ren and Sun, CVPR 2016, section 4.2): ResNet-20, 32, 44, 56 and 110."""

from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.model import Init
from sam_runner.models.layers.initialisation import initialise
from sam_runner.models.layers.pooling import every_nth_pixel, mean_over_pixels
from sam_runner.models.layers.stages import build_stages


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions with a shortcut without weights.

    Where shapes change, the shortcut takes every second pixel and pads the channels with zeros (the paper's option A).
    """

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
            x = F.pad(every_nth_pixel(x, self.stride), (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(branch + x)


class ResNetCifar(nn.Module):
    """Residual network of depth 6n + 2 for small images: three stages of n blocks with 16, 32 and 64 channels.

    Parameters for CIFAR-10: 0.27 M (20), 0.46 M (32), 0.66 M (44), 0.85 M (56), 1.7 M (110), as the paper's Table 6.

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        depth: Number of layers with weights, 6n + 2.
        init: Distribution of the initial weights, see `sam_runner.models.layers.initialisation.initialise`; the paper
            uses ``fan_in``.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If `depth` is not 6n + 2.
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
        """Return the logits (N, C) of the images."""
        features = mean_over_pixels(self.blocks(self.stem(images_NCHW)))
        logits: Tensor = self.head(features)
        return logits
