"""A convolutional network that trains on a laptop's CPU."""

from torch import Tensor, nn

from sam_runner.models.layers.pooling import MeanOverPixels


class SmallCNN(nn.Module):
    """Two 3x3 convolutions, 2x2 max pooling, two more convolutions, global average pooling and a linear layer.

    Images need at least 2x2 pixels. Width 32 has 65,834 parameters for one input channel and ten classes.

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        width: Number of channels of the first two convolutions; the last two have twice as many.
        batch_norm: Use batch norm after each convolution; otherwise the convolutions have a bias.
        dropout: Probability of dropping a feature before the linear layer, in [0, 1].

    Shape:
        (N, in_channels, H, W) -> (N, C).
    """

    def __init__(
        self, num_classes: int, in_channels: int, *, width: int = 32, batch_norm: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm)
            return [convolution, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU()]

        self.features = nn.Sequential(
            *block(in_channels, width),
            *block(width, width),
            nn.MaxPool2d(2),
            *block(width, 2 * width),
            *block(2 * width, 2 * width),
            MeanOverPixels(),
        )
        self.head = nn.Sequential(*([nn.Dropout(dropout)] if dropout else []), nn.Linear(2 * width, num_classes))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits (N, C) of the images."""
        logits: Tensor = self.head(self.features(images_NCHW))
        return logits
