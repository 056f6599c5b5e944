"""Spectral norm under SAM: the power iteration of a step is made once, by its first pass.

Each pass in training moves the two vectors of every such weight towards its singular vectors. Left alone, the passes at
w + eps would move them along perturbed weights, and groups or micro-batches would move them several times. Here the
first pass at w moves them as a plain step does, and the others see the same vectors, as they see the same dropout
masks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm


class PowerIterations:
    """The power iterations of all weights with a spectral norm, by the parametrization or the hook of `torch.nn.utils`.

    Args:
        model: The network; its set of such weights must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [entry for module in model.modules() for entry in _of(module)]
        self._methods = [(method, method.n_power_iterations) for method, _, _ in found]
        self._vectors = [(owner, name) for _, owner, name in found]
        self._once = False

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Passes in the body leave the vectors as they are."""
        before = [method.n_power_iterations for method, _ in self._methods]
        self._stop()
        try:
            yield
        finally:
            for (method, _), number in zip(self._methods, before, strict=True):
                method.n_power_iterations = number

    @contextmanager
    def once(self) -> Iterator[None]:
        """Passes in the body leave the vectors as they are from the first `done` on."""
        self._once = True
        try:
            yield
        finally:
            self._once = False
            for method, number in self._methods:
                method.n_power_iterations = number

    def done(self) -> None:
        """A pass has been made."""
        if self._once:
            self._stop()

    def vectors(self) -> list[Tensor]:
        """What the iterations move, the buffers themselves."""
        return [getattr(owner, f"{name}_{end}") for owner, name in self._vectors for end in "uv"]

    def _stop(self) -> None:
        for method, _ in self._methods:
            method.n_power_iterations = 0


def _of(module: nn.Module) -> Iterator[tuple[Any, nn.Module, str]]:
    """What iterates for a module; the owner of its vectors and what their names begin with."""
    if isinstance(module, _SpectralNorm) and hasattr(module, "_u"):  # a weight of one axis has no vectors
        yield module, module, ""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            yield hook, module, hook.name
