"""Layers that scale their branches by random numbers and use other numbers in the backward pass.

Shake-Shake and ShakeDrop are such layers. What autograd returns for them is not the gradient of the loss. The paper's
code therefore computes eps with the forward numbers in both directions (its ``true_gradient``) and uses the shaken
gradient only for the base optimizer. Both passes of a SAM step replay the random state, so they draw the same numbers.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import nn


class RandomBranches(Protocol):
    """A module with random branches; any `nn.Module` with this attribute is one.

    Attributes:
        true_gradient: If True, the backward pass uses the numbers of the forward pass.
    """

    true_gradient: bool


def find_random_branches(model: nn.Module) -> list[RandomBranches]:
    """Return all modules of `model` that have a boolean attribute ``true_gradient``."""
    return [module for module in model.modules() if isinstance(getattr(module, "true_gradient", None), bool)]  # type: ignore[misc]


@contextmanager
def true_gradient(layers: Iterable[RandomBranches]) -> Iterator[None]:
    """Compute the gradient of the loss itself in all backward passes whose forward pass is inside the context."""
    layers = list(layers)
    for layer in layers:
        layer.true_gradient = True
    try:
        yield
    finally:
        for layer in layers:
            layer.true_gradient = False
