"""Weights in shards (FSDP2): each process keeps a part of every weight, of its gradient, of the optimizer's state."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_UNIT = 1_000_000  # weights that are brought together at once, at least; our choice


def shard_model(model: nn.Module, min_unit_params: int = SMALLEST_UNIT) -> None:
    """Split the weights of a network over the processes, in place; they come together unit by unit in each pass.

    A unit is a module of at least `min_unit_params` weights without such a module inside; the rest is one more.
    """
    from torch.distributed.fsdp import fully_shard

    def visit(module: nn.Module) -> bool:
        inside = [visit(child) for child in module.children()]
        if any(inside):
            return True
        if sum(param.numel() for param in module.parameters()) < min_unit_params or module is model:
            return False
        fully_shard(module)
        return True

    visit(model)
    fully_shard(model)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def to_local(tensor: Tensor) -> Tensor:
    """The part that this process has, in the tensor's own memory; all of a tensor that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_state(state: Any) -> Any:
    """A state dictionary with whole tensors on the CPU instead of parts; all processes have to call it."""
    if isinstance(state, Tensor):
        return state.full_tensor().cpu() if hasattr(state, "full_tensor") else state
    if isinstance(state, dict):
        found = copy(state)  # with the versions of a network's modules, which are an attribute
        found.update((key, full_state(value)) for key, value in state.items())
        return found
    if isinstance(state, list | tuple):
        return type(state)(full_state(value) for value in state)
    return state


def distribute_like(state: Any, param: Tensor) -> Any:
    """An entry of a `whole` state as this process has it: tensors of the parameter's shape are split as it is."""
    if not is_sharded(param) or not isinstance(state, Tensor) or state.shape != param.shape:
        return state
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(state.to(param.device), param.device_mesh, param.placements)  # type: ignore[attr-defined]


def load_full_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a `whole` state into a network, sharded or not."""
    own = model.state_dict()
    model.load_state_dict({name: distribute_like(value, own.get(name, value)) for name, value in state.items()})


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a `whole` state into an optimizer, whose parameters may be sharded."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    entries = {
        number: {name: distribute_like(value, params[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})
