"""Buffers of a network: copies for passes whose writes are discarded.

A buffer is exchanged in the dictionary of its module, and its tensor is never written: autograd may have saved it for a
backward pass that is still to come.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Slots = dict[str, Tensor | None]
Values = list[tuple[nn.Module, Slots]]


def copy_buffers(modules: Iterable[nn.Module], excluded: frozenset[tuple[int, str]] = frozenset()) -> Values:
    """Return the modules that have buffers with copies of them. A tensor that several modules share has one copy.

    Args:
        modules: Modules, without their children.
        excluded: Buffers to leave out, as pairs (``id`` of the module, name).
    """
    return copy_values([(module, module._buffers) for module in modules if module._buffers], excluded)


@torch.no_grad()
def copy_values(values: Values, excluded: frozenset[tuple[int, str]] = frozenset()) -> Values:
    """Return `values` with copies of all tensors; see `copy_buffers`."""
    copies: dict[int, Tensor] = {}
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    result: Values = []
    for module, slots in values:
        entries: Slots = {}
        for name, tensor in slots.items():
            if excluded and (id(module), name) in excluded:
                continue
            if tensor is None:
                entries[name] = None
                continue
            copy = copies.get(id(tensor))
            if copy is None:
                if tensor.layout == torch.strided:
                    copy = torch.empty_like(tensor)
                    targets, sources = pairs.setdefault(tensor.dtype, ([], []))
                    targets.append(copy)
                    sources.append(tensor)
                else:
                    copy = tensor.detach().clone()
                copies[id(tensor)] = copy
            entries[name] = copy
        result.append((module, entries))
    for targets, sources in pairs.values():
        torch._foreach_copy_(targets, sources)
    return result


@contextmanager
def exchanged_buffers(values: Values) -> Iterator[None]:
    """Let the modules hold the tensors of `values` inside the context; give them their own back on exit."""
    before = [(module._buffers, dict(module._buffers)) for module, _ in values]
    for module, slots in values:
        module._buffers.update(slots)
    try:
        yield
    finally:
        for buffers, slots in before:
            buffers.clear()
            buffers.update(slots)


@torch.no_grad()
def write_buffers(values: Values) -> None:
    """Write `values` into the buffers, in place unless a buffer has another shape, dtype or device now."""
    for module, slots in values:
        for name, value in slots.items():
            buffer = module._buffers.get(name)
            if value is None or buffer is None or not are_alike(buffer, value):
                module._buffers[name] = value
            else:
                buffer.copy_(value)


def are_alike(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and device."""
    return first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
