"""Shake-Shake and ShakeDrop: residual branches with random scales, which differ between forward and backward pass.

The resulting gradient is not the gradient of any loss. The SAM paper's code therefore computes eps with the true
gradient, where the backward pass uses the scales of the forward pass (its option ``true_gradient``), and only the final
gradient has scales of its own. Both passes of a SAM step replay the random state, so their forward scales are equal.
"""

from typing import Any

import torch
from torch import Tensor, nn


class ShakeLayer(nn.Module):
    """Base class of layers with random scales in training.

    Attributes:
        true_gradient: Whether the backward pass uses the scales of the forward pass.
    """

    true_gradient = False

    def _scale(self, branch: Tensor, forward_scale: Tensor, backward_scale: Tensor) -> Tensor:
        """Multiply a branch (N, C, H, W) by `forward_scale` and its gradient by `backward_scale`, both (N, 1, 1, 1)."""
        if self.true_gradient:
            return branch * forward_scale
        scaled: Tensor = _Scale.apply(branch, forward_scale, backward_scale)
        return scaled


class ShakeShake(ShakeLayer):
    """Random mixture of two branches (Gastaldi, arXiv 1705.07485): a x + (1 - a) y, with a uniform on [0, 1].

    Each example of the batch has its own a. In evaluation mode the layer returns the mean of the branches.

    Shape:
        Two inputs (N, C, H, W) -> (N, C, H, W).
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mix the branches."""
        if not self.training:
            return (first + second) / 2
        forward_scale, backward_scale = _draw_uniform(2, first)
        return self._scale(first, forward_scale, backward_scale) + self._scale(
            second, 1 - forward_scale, 1 - backward_scale
        )


class ShakeDrop(ShakeLayer):
    """Random scale of one branch (Yamada, Iwamura, Akiba and Kise, arXiv 1802.02375, eq. 6).

    With probability `keep` the branch is not changed. Otherwise its scale is uniform on [-1, 1] in the forward pass and
    on [0, 1] in the backward pass, the ranges of the paper's CIFAR table. Each example of the batch has its own random
    numbers. In evaluation mode the layer returns the expected value, `keep` times the branch.

    Args:
        keep: Probability that the branch is not changed, in [0, 1].

    Shape:
        (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, branch: Tensor) -> Tensor:
        """Scale the branch."""
        if not self.training:
            return branch * self.keep
        chance, forward_uniform, backward_uniform = _draw_uniform(3, branch)
        is_kept = chance < self.keep
        forward_scale = (2 * forward_uniform - 1).masked_fill(is_kept, 1.0)
        return self._scale(branch, forward_scale, backward_uniform.masked_fill(is_kept, 1.0))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Tensor, forward_scale: Tensor, backward_scale: Tensor) -> Tensor:
        ctx.save_for_backward(backward_scale)
        return branch * forward_scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backward_scale,) = ctx.saved_tensors
        return gradient * backward_scale, None, None


def _draw_uniform(count: int, like: Tensor) -> tuple[Tensor, ...]:
    """Return `count` tensors (N, 1, 1, 1) of numbers uniform on [0, 1), with the device and dtype of `like`.

    All come from a single draw: a compiler that removed an unused draw would change the numbers of the others.
    """
    return torch.rand(count, len(like), 1, 1, 1, device=like.device).to(like.dtype).unbind()
