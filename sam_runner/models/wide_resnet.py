"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016): WRN-d-k has d convolutions and k times the channels."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.config.model import Init
from sam_runner.models.layers.initialisation import initialise
from sam_runner.models.layers.pooling import mean_over_pixels
from sam_runner.models.layers.stages import build_stages


class _Block(nn.Module):
    """A pre-activation residual block: batch norm, ReLU and 3x3 convolution, twice.

    Where shapes change, the shortcut is a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs) if batch_norm else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not batch_norm)
        self.bn2 = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=not batch_norm)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        branch: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return branch + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-d-k for small images: three stages of (d - 4)/6 blocks with 16k, 32k and 64k channels.

    Parameters for CIFAR-10: 36.5 M (28-10), 11.0 M (16-8), 2.2 M (40-2), as in the paper's Table 4 and section 3.

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        depth: Number of convolutions, d = 6n + 4.
        widen_factor: Factor of the numbers of channels, k.
        dropout: Probability of dropping a value between the two convolutions of a block, in [0, 1].
        batch_norm: Use batch norm; otherwise the 3x3 convolutions have a bias, as in the SAM paper's section 4.2
            (WRN-40-10).
        init: Distribution of the initial weights, see `sam_runner.models.layers.initialisation.initialise`.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If `depth` is not 6n + 4.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        batch_norm: bool = True,
        init: Init = "fan_out",
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, 40, ...), not {depth}")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=not batch_norm)
        widths = [16 * stage * widen_factor for stage in (1, 2, 4)]
        self.blocks = build_stages(
            16, widths, (depth - 4) // 6, partial(_Block, dropout=dropout, batch_norm=batch_norm)
        )
        self.bn = nn.BatchNorm2d(widths[-1]) if batch_norm else nn.Identity()
        self.head = nn.Linear(widths[-1], num_classes)
        initialise(self, self.head, init)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits (N, C) of the images."""
        features = F.relu(self.bn(self.blocks(self.stem(images_NCHW))))
        logits: Tensor = self.head(mean_over_pixels(features))
        return logits
