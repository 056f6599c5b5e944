"""No perturbation: the base optimizer's own step."""

import torch
from torch import Tensor

from sam_runner.sam.method import Group, GroupStats, Method


class Plain(Method):
    """One pass at w, whatever rho is: bit for bit the step of the base optimizer in a loop without SAM."""

    name = "plain"

    def radius(self, rho: float | Tensor, number: int | None, lr: float) -> float | Tensor:
        """Return 0."""
        return 0.0

    def passes(self, number: int) -> int:
        """Return 1."""
        return 1

    def accumulate(self, group: Group) -> GroupStats:
        """Add the gradient at w to ``.grad``."""
        evaluation = group.backward()
        return GroupStats(evaluation, evaluation.loss, None, torch.zeros_like(evaluation.loss))
