"""Spectral norm under SAM: one power iteration per step, made by the first pass.

In training, each pass moves the two vectors of a spectrally normalised weight towards its singular vectors. By default
passes at w + eps would move them along perturbed weights, and groups or micro-batches would move them several times.
Here the first pass moves them as a plain step does. All other passes use the same vectors, as they use the same dropout
masks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm


class PowerIterations:
    """Controls the power iterations of a model's spectral norms (parametrization or hook of `torch.nn.utils`).

    Attributes:
        slots: The buffers that power iterations update, as pairs (``id`` of the module, name).

    Args:
        model: The model; no spectral norm may be added or removed afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [entry for module in model.modules() for entry in _find_iterations(module)]
        self._methods = [(method, method.n_power_iterations) for method, _, _ in found]
        self._vectors = [(owner, name) for _, owner, name in found]
        self.slots = frozenset((id(owner), f"{name}_{end}") for owner, name in self._vectors for end in "uv")
        self._is_single = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Make no power iteration in the passes inside the context."""
        before = [method.n_power_iterations for method, _ in self._methods]
        self._stop()
        try:
            yield
        finally:
            for (method, _), number in zip(self._methods, before, strict=True):
                method.n_power_iterations = number

    @contextmanager
    def single_iteration(self) -> Iterator[None]:
        """Make power iterations inside the context only until the first `end_pass`."""
        self._is_single = True
        try:
            yield
        finally:
            self._is_single = False
            for method, number in self._methods:
                method.n_power_iterations = number

    def end_pass(self) -> None:
        """Stop the iterations inside `single_iteration`; call it after each pass."""
        if self._is_single:
            self._stop()

    def _stop(self) -> None:
        for method, _ in self._methods:
            method.n_power_iterations = 0


def _find_iterations(module: nn.Module) -> Iterator[tuple[Any, nn.Module, str]]:
    """Yield (object with ``n_power_iterations``, owner of its vectors, prefix of their names) of a module."""
    if isinstance(module, _SpectralNorm) and hasattr(module, "_u"):  # a weight of one axis has no vectors
        yield module, module, ""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            yield hook, module, hook.name
