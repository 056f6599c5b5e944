"""Optimizers that leave torch's compiler alone: importing it takes more than a second, and a run may not need it."""

from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer

SHIELDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def avoid_compiler_import(kind: type[Optimizer]) -> None:
    """Make and step optimizers of a class without importing ``torch._dynamo``, in this process from now on.

    torch imports it when the first optimizer is made, to hide four of its methods from the compiler, and at the first
    step, to break a graph that is being compiled. Whoever compiles an optimizer's step needs both; a step that runs as
    it is written needs neither. Where another torch than 2.14 has arranged it otherwise, it is left as it is.

    Args:
        kind: The class of the optimizer; its bases are treated alike.
    """
    for name in SHIELDED:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            vars(method).setdefault("__dynamo_disable", method)  # where torch keeps the hidden one
    for owner in kind.__mro__:
        step = vars(owner).get("step")
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad":
            owner.step = _stepping(step.__wrapped__)  # type: ignore[attr-defined,union-attr]


def _stepping(step: Any) -> Any:
    """An optimizer's step with gradients recorded only where that was asked for."""

    @wraps(step)
    def stepping(self: Optimizer, *arguments: Any, **keywords: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **keywords)

    return stepping
