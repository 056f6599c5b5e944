"""Build the base optimizer of a run, and check that SAM can use it."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sam_runner.config.instantiate import call_target, locate
from sam_runner.config.optimizer.method import OptimizerConfig
from sam_runner.config.optimizer.perturbation import MomentumSamConfig
from sam_runner.distributed.sharding import is_sharded
from sam_runner.models.build import parameter_groups
from sam_runner.sam.methods.momentum_sam import find_momentum
from sam_runner.sam.optimizer_step import needs_closure
from sam_runner.training.compiler_free_optimizers import avoid_compiler_import
from sam_runner.utils.errors import InputError, first_line
from sam_runner.utils.safe_load import find_unloadable


def build_optimizer(
    options: OptimizerConfig,
    model: nn.Module,
    num_classes: int,
    *,
    head_lr: float | None,
    compiled: bool = False,
) -> torch.optim.Optimizer:
    """Return the base optimizer over all parameters that require gradients.

    Args:
        options: Settings of the method. `base` and `weight_decay_in_loss` are used. For momentum_sam the base optimizer
            must have momentum.
        model: The network.
        num_classes: Number of outputs of the network. The head (last layer) is found by this number.
        head_lr: Initial learning rate of the head. None: that of the other parameters.
        compiled: Whether the run uses torch.compile. If not, the import of the compiler is avoided.

    Raises:
        InputError: If the class is not an optimizer, lacks lr, or SAM cannot use it; if it lacks weight decay, and
            weight decay is asked for.
    """
    target, arguments = options.base.target, options.base.arguments()
    if options.weight_decay_in_loss:
        arguments["weight_decay"] = 0.0
    params = [param for param in model.parameters() if param.requires_grad]
    groups = parameter_groups(model, num_classes, head_lr)
    _require_base_optimizer(target)
    if not _accepts(target, "lr"):
        raise InputError(
            f"optimizer.base._target_={target} has no argument lr\n"
            "  add it to __init__: the learning rate of the run is passed there, and set in param_groups in each step"
        )
    if not _accepts(target, "weight_decay"):
        if options.base.weight_decay != 0:
            raise InputError(f"optimizer.base._target_={target} has no argument weight_decay\n  set weight_decay=0")
        del arguments["weight_decay"]
    if _supports_fused(target, arguments) and all(
        param.is_floating_point() and not is_sharded(param) for param in params
    ):
        arguments["fused"] = True
    if not compiled:
        avoid_compiler_import(locate(target))  # type: ignore[arg-type]
    _try_optimizer(target, arguments, needs_momentum=isinstance(options, MomentumSamConfig))
    optimizer: torch.optim.Optimizer = call_target(target, arguments, "optimizer.base", params=groups)
    if callable(getattr(optimizer, "train", None)):  # a schedule-free optimizer
        optimizer.train()  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _accepts(target: str, name: str) -> bool:
    """Return whether a class has an argument, or hands it on as one of ``**kwargs`` to a base class that has it."""
    kind: Any = locate(target)
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        if name in parameters:
            return True
        if not any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values()):
            return False
    return False


def _supports_fused(target: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether torch has a fused step of the optimizer and the user's arguments do not exclude it."""
    parameters = inspect.signature(locate(target)).parameters
    chosen = {"fused", "foreach", "differentiable"} & set(arguments)
    return "fused" in parameters and not chosen and not arguments.get("dampening")


def _require_base_optimizer(target: str) -> None:
    """Require a subclass of torch.optim.Optimizer that needs neither a closure nor sparse gradients."""
    kind = locate(target)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
        raise InputError(
            f"optimizer.base._target_={target} is not an optimizer\n"
            "  use a class of torch.optim, such as torch.optim.Adagrad"
        )
    if needs_closure(kind) or issubclass(kind, torch.optim.SparseAdam):
        raise InputError(
            f"optimizer.base._target_={target} needs a closure or sparse gradients\n  use another class of torch.optim"
        )


def _try_optimizer(target: str, arguments: Mapping[str, Any], *, needs_momentum: bool) -> None:
    """Try one step of an optimizer, to see whether it needs anything besides gradients.

    Optimizers of torch.optim are tried only to see whether they have momentum.

    Args:
        target: Dotted name of the class of the optimizer.
        arguments: Its arguments.
        needs_momentum: Whether the optimizer must have momentum after the step.

    Raises:
        InputError: If the step fails, the parameter groups have no learning rate, a checkpoint cannot hold the state,
            or the optimizer must have momentum and has none.
    """
    if target.startswith("torch.optim.") and not needs_momentum:
        return
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = call_target(target, {**arguments}, "optimizer.base", params=[param])
    param.grad = torch.ones_like(param)
    try:
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"optimizer.base._target_={target} cannot take a step with gradients alone: {first_line(error)}\n"
            "  SAM's base optimizer must need no closure, no Hessian and no sparse gradients"
        ) from error
    if not all("lr" in group for group in optimizer.param_groups):
        raise InputError(
            f"optimizer.base._target_={target} has parameter groups without lr\n"
            "  keep the learning rate there, as the classes of torch.optim do: the schedule sets it in each step"
        )
    if kind := find_unloadable(optimizer.state_dict()):
        raise InputError(
            f"optimizer.base._target_={target} has state that a checkpoint cannot hold: {kind}\n"
            "  keep dense tensors, numbers, texts, lists and dictionaries in it"
        )
    if needs_momentum and find_momentum(optimizer, param) is None:
        raise InputError(
            f"optimizer=momentum_sam needs momentum, and optimizer.base._target_={target} has none\n"
            "  use optimizer/base=sgd or optimizer/base=adamw"
        )
