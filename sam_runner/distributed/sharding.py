"""Sharded weights (FSDP2): each process stores a part of every weight, of its gradient and of the optimizer's state.

Checkpoints hold full tensors with the same names as an unsharded run's, so a run can continue with or without shards.
`torch.distributed.checkpoint.state_dict` is not used for them: it keys the optimizer's state by parameter names, where
an optimizer's own `state_dict` has numbers, and it drops the module versions of a model's state dictionary.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

MIN_UNIT_PARAMS = 1_000_000  # the minimum number of parameters gathered at once; our choice


def shard_model(model: nn.Module, min_unit_params: int = MIN_UNIT_PARAMS) -> None:
    """Split the parameters of a network over the processes, in place.

    Each forward and backward pass gathers them unit by unit. A unit is a module with at least `min_unit_params`
    parameters that contains no such module; the parameters outside of units form one more.
    """
    from torch.distributed.fsdp import fully_shard

    def shard_units(module: nn.Module) -> bool:
        """Shard the units inside a module, or the module as one unit; return whether there was any."""
        contains_unit = [shard_units(child) for child in module.children()]
        if any(contains_unit):
            return True
        if sum(param.numel() for param in module.parameters()) < min_unit_params or module is model:
            return False
        fully_shard(module)
        return True

    shard_units(model)
    fully_shard(model)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process stores only a part of a tensor (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def to_local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, sharing its memory; any other tensor is returned itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_state(state: Any) -> Any:
    """Return a state dictionary in which full tensors on the CPU replace sharded ones.

    A collective: all processes must call it. Tensors that are not sharded are returned themselves.
    """
    if isinstance(state, Tensor):
        return state.full_tensor().cpu() if is_sharded(state) else state  # type: ignore[attr-defined]
    if isinstance(state, dict):
        result = copy(state)  # keeps the attribute `_metadata`, the versions of the network's modules
        result.update((key, full_state(value)) for key, value in state.items())
        return result
    if isinstance(state, list | tuple):
        return type(state)(full_state(value) for value in state)
    return state


def distribute_like(value: Any, param: Tensor) -> Any:
    """Shard an entry of a full state like a parameter; an entry of another shape or type is returned itself."""
    if not is_sharded(param) or not isinstance(value, Tensor) or value.shape != param.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(param.device), param.device_mesh, param.placements)  # type: ignore[attr-defined]


def load_full_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a full state dictionary into a network, sharded or not; a buffer gets the shape that it had."""
    resized: dict[int, Tensor] = {}  # by the id of the buffer, which may have several names
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in state and state[name].shape != buffer.shape:  # replaced in a forward pass, as a growing memory is
            module, _, key = name.rpartition(".")
            resized.setdefault(id(buffer), buffer.new_empty(state[name].shape))
            model.get_submodule(module)._buffers[key] = resized[id(buffer)]
    own = model.state_dict()
    model.load_state_dict({name: distribute_like(value, own.get(name, value)) for name, value in state.items()})


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a full state dictionary into an optimizer, whose parameters may be sharded."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    entries = {
        index: {name: distribute_like(value, params[index]) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})
