"""Pooling whose gradients keep the memory layout of the images.

The gradients of torch's `adaptive_avg_pool2d` with one pixel and of a slice ``[:, :, ::2, ::2]`` are contiguous (NCHW).
In a network with the layout channels_last, the next ReLU then reads two layouts at once, which takes more than ten
times as long.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def mean_over_pixels(images_NCHW: Tensor) -> Tensor:
    """Return the mean over the pixels of each channel, (N, C)."""
    if isinstance(images_NCHW, Tensor) and images_NCHW.stride(1) == 1:  # channels_last; no Tensor: a symbolic trace
        return images_NCHW.permute(0, 2, 3, 1).mean((1, 2))
    return images_NCHW.mean((2, 3))


def every_nth_pixel(images_NCHW: Tensor, n: int) -> Tensor:
    """Return every n-th pixel of each row and column, the first ones included: (N, C, ceil(H/n), ceil(W/n))."""
    return F.avg_pool2d(images_NCHW, 1, n)


class MeanOverPixels(nn.Module):
    """The mean over the pixels of each channel: (N, C, H, W) -> (N, C)."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the means."""
        return mean_over_pixels(images_NCHW)
