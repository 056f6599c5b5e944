"""Buffers of a network: copies for passes whose writes are discarded.

A buffer is exchanged in the dictionary of its module, and its tensor is never written: autograd may have saved it for a
backward pass that is still to come.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Slots = dict[str, Tensor | None]
Values = list[tuple[nn.Module, Slots]]


def copy_buffers(modules: Iterable[nn.Module], excluded: frozenset[tuple[int, str]] = frozenset()) -> Values:
    """Return the modules that have buffers, each with copies of its buffers.

    A tensor that several modules share has one copy, and copies of views of one storage are views of one storage.

    Args:
        modules: Modules, without their children.
        excluded: Buffers to leave out, as pairs (``id`` of the module, name).
    """
    return copy_values([(module, module._buffers) for module in modules if module._buffers], excluded)


@torch.no_grad()
def copy_values(values: Values, excluded: frozenset[tuple[int, str]] = frozenset()) -> Values:
    """Return `values` with copies of all tensors; see `copy_buffers`."""
    chosen = [
        (module, {name: tensor for name, tensor in slots.items() if (id(module), name) not in excluded})
        for module, slots in values
    ]
    copies = _copy_tensors(
        {id(tensor): tensor for _, slots in chosen for tensor in slots.values() if tensor is not None}
    )
    return [
        (module, {name: None if tensor is None else copies[id(tensor)] for name, tensor in slots.items()})
        for module, slots in chosen
    ]


def _copy_tensors(tensors: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return copies by the same keys; views of one storage stay views of one storage."""
    storages = {key: tensor.untyped_storage() for key, tensor in tensors.items() if tensor.layout == torch.strided}
    counts = Counter(storage.data_ptr() for storage in storages.values())
    shared: dict[int, torch.UntypedStorage] = {}
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    copies: dict[int, Tensor] = {}
    for key, tensor in tensors.items():
        if key not in storages:
            copies[key] = tensor.detach().clone()
            continue
        address = storages[key].data_ptr()
        if address and counts[address] > 1:
            if address not in shared:
                shared[address] = storages[key].clone()
            place = tensor.storage_offset(), tensor.shape, tensor.stride()
            copies[key] = tensor.new_empty(0).set_(shared[address], *place)
        else:
            copies[key] = torch.empty_like(tensor)
            targets, sources = pairs.setdefault(tensor.dtype, ([], []))
            targets.append(copies[key])
            sources.append(tensor)
    for targets, sources in pairs.values():
        torch._foreach_copy_(targets, sources)
    return copies


@contextmanager
def swapped_buffers(values: Values) -> Iterator[None]:
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
