"""Shake-Shake and ShakeDrop: branches scaled by random numbers, others in the backward pass than in the forward pass.

The gradient that comes of it is no gradient of any loss. The paper's code therefore finds eps with the numbers of the
forward pass in both directions (its ``true_gradient``), and only the final gradient is shaken. Both passes of a SAM
step replay the random state, so that their forward numbers are the same.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Shaken(nn.Module):
    """A layer that is shaken in training.

    Attributes:
        true_gradient: Whether the backward pass uses the numbers of the forward pass.
    """

    true_gradient = False

    def _scaled(self, branch: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        """`forward` times the branch, whose gradient is `backward` times what comes in; both (N, 1, 1, 1)."""
        if self.true_gradient:
            return branch * forward
        scaled: Tensor = _Scale.apply(branch, forward, backward)
        return scaled


class ShakeShake(Shaken):
    """a x + (1 - a) y with a uniform on [0, 1] for each example (Gastaldi, arXiv 1705.07485); in evaluation the mean.

    Shape:
        Two of (N, C, H, W) -> (N, C, H, W).
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mix the branches."""
        if not self.training:
            return (first + second) / 2
        forward, backward = _uniform(2, first)
        return self._scaled(first, forward, backward) + self._scaled(second, 1 - forward, 1 - backward)


class ShakeDrop(Shaken):
    """A branch that is kept, or else scaled: by [-1, 1] forward and by [0, 1] backward, for each example.

    Yamada, Iwamura, Akiba and Kise (arXiv 1802.02375), eq. 6, with the ranges of their table of CIFAR. In evaluation it
    is the mean: `keep` times the branch.

    Args:
        keep: Probability that a branch is kept as it is.

    Shape:
        (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, branch: Tensor) -> Tensor:
        """Shake the branch."""
        if not self.training:
            return branch * self.keep
        chance, forward, backward = _uniform(3, branch)
        kept = chance < self.keep
        return self._scaled(branch, (2 * forward - 1).masked_fill(kept, 1.0), backward.masked_fill(kept, 1.0))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, branch: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return branch * forward

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backward,) = ctx.saved_tensors
        return gradient * backward, None, None


def _uniform(count: int, like: Tensor) -> tuple[Tensor, ...]:
    """`count` numbers on [0, 1) for each example, (N, 1, 1, 1).

    They are one draw, of the same size whatever is used of it: a compiler that left a draw out would shift the others.
    """
    return torch.rand(count, len(like), 1, 1, 1, device=like.device).to(like.dtype).unbind()
