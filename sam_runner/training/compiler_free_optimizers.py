"""Optimizers that do not import torch's compiler: the import takes more than a second, and few runs compile."""

from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer

DISABLED_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def avoid_compiler_import(kind: type[Optimizer]) -> None:
    """Let optimizers of a class be constructed and stepped without importing ``torch._dynamo``, in this whole process.

    torch imports ``torch._dynamo`` when it constructs the first optimizer, to exclude four methods from compilation,
    and at the first step, to insert a graph break. Only a compiled optimizer step needs either. The wrappers replaced
    here are those of torch 2.14; if another version has none, nothing is changed.

    Args:
        kind: The class of the optimizer; its base classes are changed too.
    """
    for name in DISABLED_METHODS:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            vars(method).setdefault("__dynamo_disable", method)  # where torch caches the excluded method
    for owner in kind.__mro__:
        step = vars(owner).get("step")
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad":
            owner.step = _wrap_step(step.__wrapped__)  # type: ignore[attr-defined,union-attr]


def _wrap_step(step: Any) -> Any:
    """Return an optimizer's step that records gradients only if the optimizer has ``differentiable=True``."""

    @wraps(step)
    def wrapped_step(self: Optimizer, *arguments: Any, **keywords: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **keywords)

    return wrapped_step
