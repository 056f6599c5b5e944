"""Build a network from its settings, fill it with weights and place it on a device."""

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from sam_runner.config.instantiate import call_target, is_own, locate
from sam_runner.config.model import ModelConfig
from sam_runner.models.frozen_batchnorm import freeze_batchnorm
from sam_runner.models.outputs import get_logits
from sam_runner.models.pretrained import (
    Statistics,
    download_torchvision_weights,
    file_normalisation,
    find_head,
    load_weights,
    read_weights,
    timm_normalisation,
    torchvision_normalisation,
)
from sam_runner.utils.errors import InputError, find_memory_error, first_line
from sam_runner.utils.number_format import convert_numbers
from sam_runner.utils.safe_load import find_unloadable
from sam_runner.utils.seeding import seed_everything
from sam_runner.utils.user_code import describe_error, find_definition

log = logging.getLogger("sam_runner")
TRAINED: WeakValueDictionary[int, nn.Parameter] = WeakValueDictionary()  # by the runs of this process, by id


def build_model(
    config: ModelConfig,
    num_classes: int,
    examples: Tensor,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    sync_batchnorm: bool = False,
    freeze_batchnorm_stats: bool = False,
) -> nn.Module:
    """Build a network and initialise it from the seed or from a file; on the CPU, in training mode.

    Args:
        config: Settings of the network.
        num_classes: Number of outputs.
        examples: Two images or other inputs of zeros, (2, C, H, W) or (2, ...), floating-point or int64.
        seed: Seed of the run.
        dtype: Number format of the weights; complex buffers get the complex format of the same precision.
        sync_batchnorm: Make batch norm use the images of all processes.
        freeze_batchnorm_stats: Keep the running statistics of batch norm.

    Raises:
        InputError: If the network cannot be built, or does not fit the images or the weights.
    """
    shape = tuple(examples.shape[1:])
    parameters = inspect.signature(locate(config.target)).parameters
    arguments = config.arguments()
    if "num_classes" not in parameters and any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values()):
        arguments = {"num_classes": num_classes, **arguments}
    context = {
        "num_classes": num_classes,
        "in_channels": shape[0],
        "in_features": math.prod(shape),
        "input_shape": shape,
    }
    if len(shape) == 3 and shape[1] == shape[2] and "image_size" not in arguments:
        context["image_size"] = shape[1]
    seed_everything(seed, "initialisation")
    model = call_target(config.target, arguments, "model", **context)
    _require_module(model, config.target)
    model = convert_numbers(model, dtype)
    examples = examples.to(dtype) if examples.is_floating_point() else examples
    _start_training_mode(model, config.target)
    is_lazy_model = any(is_lazy(param) for param in [*model.parameters(), *model.buffers()])
    if is_own(config.target):
        _try_own(model, config.target, examples, num_classes)
    elif is_lazy_model or len(shape) != 3 or ("in_channels" not in parameters and shape[0] != 3):
        _try_images(model, config.target, examples)
    _require_trainable(model, config.target)
    if config.weights is not None:
        weights = _weights(config.weights, config.target, arguments, context)
        log.info("%s", load_weights(model, weights, config.weights, num_classes))
    if sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if freeze_batchnorm_stats and not freeze_batchnorm(model):
        raise InputError(
            "freeze_batchnorm_stats has no effect: the model has no batch norm\n  leave freeze_batchnorm_stats out"
        )
    built: nn.Module = model
    return built


def _require_module(model: Any, target: str) -> None:
    """Refuse what is no network, and a network whose buffers a step cannot restore."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {target} gives a {type(model).__name__}, not a torch.nn.Module\n  return the network itself"
        )
    if any(isinstance(module, torch.jit.ScriptModule) and [*module.buffers()] for module in model.modules()):
        raise InputError(
            f"model {target} has buffers in a module of TorchScript, which a step cannot restore\n"
            "  use the nn.Module that it was made from"
        )


def _start_training_mode(model: nn.Module, target: str) -> None:
    """Put a network into training mode, as every epoch does; log a warning if a part was in evaluation mode."""
    asleep = [(name, module) for name, module in model.named_modules() if model.training and not module.training]
    model.train()
    if woken := [name for name, module in asleep if module.training]:
        log.warning(
            "%s of model %s was in evaluation mode, which ends when training calls model.train(). To keep it, override "
            "the method train of the network; freeze_batchnorm_stats=true keeps the statistics of all batch norm",
            *(woken[0], target),
        )


def _require_trainable(model: nn.Module, target: str) -> None:
    """Refuse a network with complex weights, with state that a checkpoint cannot hold, or with nothing to train."""
    names = [name for name, param in model.named_parameters() if param.is_complex()]
    if names:
        raise InputError(
            f"model {target} has complex weights ({names[0]}), which SAM does not support here\n"
            "  store them as real parameters (torch.view_as_real) and use torch.view_as_complex in the forward pass"
        )
    if kind := find_unloadable(model.state_dict()):
        raise InputError(
            f"model {target} has state that a checkpoint cannot hold: {kind}\n"
            "  keep dense tensors, numbers, texts, lists and dictionaries in it; a constant buffer needs no checkpoint:"
            " register_buffer(name, tensor, persistent=False)"
        )
    if not any(param.requires_grad for param in model.parameters()):
        raise InputError(f"model {target} has no parameter that requires a gradient")


def require_new_weights(model: nn.Module, target: str) -> None:
    """Refuse to train parameters that an earlier run of this process has trained.

    Raises:
        InputError: If the network has such a parameter.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if shared := [name for name, param in trained.items() if TRAINED.get(id(param)) is param]:
        raise InputError(
            f"model {target} returns weights that an earlier run of this process has trained ({shared[0]})\n"
            "  make the layers inside the function, or copy them there: copy.deepcopy(layers)"
        )
    TRAINED.update({id(param): param for param in trained.values()})


def _try_own(model: nn.Module, target: str, examples: Tensor, num_classes: int) -> None:
    """Evaluate two examples with a user's own network, which initialises lazy layers. Its buffers do not change.

    Raises:
        InputError: If the network does not accept the inputs or returns no logits of the classes.
    """
    try:
        with _trial(model):
            outputs = model(examples)
        logits = get_logits(outputs)
    except InputError as error:
        raise InputError(f"model {target}: {error}\n  in {find_definition(type(model).forward)}") from error
    except Exception as error:
        _require_fitting_channels(model, target, tuple(examples.shape[1:]))
        way = "a function gets num_classes, in_channels, image_size, in_features and input_shape if it has them"
        if "dtype" in str(error) and examples.dtype == torch.float32:
            way = "weights and inputs are float32; precision=fp64 makes both float64"
        if not examples.dtype.is_floating_point:
            way = "integer inputs reach the model as int64, as tokens do; give floats, or images as uint8"
        raise InputError(
            f"model {target} does not accept {_describe_inputs(examples)}: {describe_error(error)}\n  {way}"
        ) from error
    if tuple(logits.shape) != (len(examples), num_classes):
        place = find_definition(locate(target))
        raise InputError(
            f"model {target} returns outputs of shape {tuple(logits.shape)} for {len(examples)} inputs, and the data "
            f"have {num_classes} classes\n  accepted: ({len(examples)}, {num_classes}); the argument num_classes gets "
            f"the number of classes{chr(10) + '  in ' + place if place else ''}"
        )
    _warn_of_probabilities(logits, target)


@contextmanager
def _trial(model: nn.Module) -> Iterator[None]:
    """Let the network be evaluated in the context without a trace in its mode and its buffers."""
    was_training, before = model.training, {name: value for name, value in model.named_buffers() if not is_lazy(value)}
    saved = {name: value.clone() for name, value in before.items()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        for name, value in saved.items():
            model.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = before[name].copy_(value)


def _describe_inputs(examples: Tensor) -> str:
    dtype = "" if examples.dtype.is_floating_point else f"{str(examples.dtype).removeprefix('torch.')} "
    return f"{dtype}inputs of shape {tuple(examples.shape[1:])}"


def _warn_of_probabilities(logits: Tensor, target: str) -> None:
    """Log a warning if the outputs are probabilities: the loss applies the softmax to them once more."""
    if bool((logits >= 0).all()) and bool(((logits.double().sum(1) - 1).abs() < 1e-4).all()):
        log.warning(
            "the outputs of model %s are probabilities: they sum to 1. The loss applies the softmax itself, so the "
            "network should return logits: leave out its softmax",
            target,
        )


def _try_images(model: nn.Module, target: str, examples: Tensor) -> None:
    """Evaluate two images, which initialises lazy layers.

    Raises:
        InputError: If the network does not accept images of the shape.
    """
    reason = find_refusal(model, examples)
    if reason is None:
        return
    shape = tuple(examples.shape[1:])
    if len(shape) != 3:
        raise InputError(
            f"model {target} does not accept inputs of shape {shape}: {reason}\n"
            "  use a model of your own: model._target_=my_models.tiny (docs/own_model.md)"
        )
    channels, height, width = shape
    _require_fitting_channels(model, target, shape)
    raise InputError(
        f"model {target} does not accept images of {channels} x {height} x {width}: {reason}\n"
        "  use another model or other data; a function with the argument in_channels gets the number of channels"
    )


def _require_fitting_channels(model: nn.Module, target: str, shape: tuple[int, ...]) -> None:
    """Raise InputError if the model refuses the images only because they do not have three channels."""
    if len(shape) == 3 and shape[0] != 3 and find_refusal(model, torch.zeros(2, 3, *shape[1:])) is None:
        raise InputError(
            f"model {target} is for 3 channels, the images have {shape[0]}\n  use another model or other data"
        )


def find_refusal(model: nn.Module, examples: Tensor) -> str | None:
    """Return the error of evaluating examples, or None."""
    try:
        with _trial(model):
            model(examples)
    except Exception as error:  # of the user's own code
        if find_memory_error(error):
            raise
        return first_line(error)[:200]
    return None


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights and buffers.

    Args:
        model: The network. Tensors that its modules keep from a forward pass (the weight of an old weight norm, say)
            lose their graph.
        decay: Factor of the old average in a step, in [0, 1).

    Raises:
        InputError: If the network cannot be copied.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()
    try:
        return AveragedModel(model, multi_avg_fn=partial(_average, 1 - decay), use_buffers=True)
    except Exception as error:
        raise InputError(
            f"ema_decay needs a copy of the model, which fails: {first_line(error)[:200]}\n"
            "  leave ema_decay out, or make copy.deepcopy(model) work"
        ) from error


@torch.no_grad()
def _average(share: float, averages: list[Tensor], values: list[Tensor], _: Tensor) -> None:
    """Move averages by a share of the way to the values of the network; whole numbers and sparse tensors are copied.

    torch's ``get_ema_multi_avg_fn`` averages whole numbers too, and cuts off after rounding: an index 3 can become 2.
    """
    has_mean = averages[0].is_floating_point() or averages[0].is_complex()  # those of a call have one dtype
    if has_mean and all(average.layout == torch.strided for average in averages):
        torch._foreach_lerp_(averages, values, share)
        return
    for average, value in zip(averages, values, strict=True):
        if has_mean and average.layout == torch.strided:
            average.lerp_(value, share)
        else:
            average.copy_(value)


def place_model(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a network to a device, its tensors of four axes in the given memory layout.

    Raises:
        InputError: If it has SyncBatchNorm and the device is not CUDA.
    """
    if device.type != "cuda" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise InputError(
            f"torch's SyncBatchNorm needs a CUDA device, this is {device}\n"
            "  leave sync_batchnorm out, and use torch.nn.BatchNorm2d in a network of your own"
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    placed: nn.Module = model.to(device)._apply(
        lambda tensor: tensor.to(memory_format=layout) if tensor.ndim == 4 else tensor
    )
    return placed


def weights_dtype(precision: str) -> torch.dtype:
    """Return the dtype of the weights and of the images."""
    return torch.float64 if precision == "fp64" else torch.float32


def _weights(source: str, target: str, arguments: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that `model.weights` names."""
    library, _, which = source.partition(":")
    name = arguments.get("name", target.rpartition(".")[2])
    if library == "torchvision":
        if not (target.startswith("torchvision.models.") or target.endswith(".torchvision_model")):
            raise InputError(
                f"model.weights={source} is for networks of torchvision, not {target}\n"
                "  use model.weights=FILE, or model=torchvision model.name=NAME"
            )
        return download_torchvision_weights(name, which)
    if source == "timm":
        if not target.endswith(".timm_model"):
            raise InputError(f"model.weights=timm is for networks of timm, not {target}\n  use model=timm")
        published = {**context, "num_classes": None}
        try:
            model = call_target(target, {**arguments, "pretrained": True}, "model", **published)
            state: dict[str, Tensor] = model.state_dict()
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"timm has no weights for {name} here: {first_line(error)}\n  use model.weights=FILE"
            ) from error
        return state
    return read_weights(Path(source).expanduser())


def published_normalisation(config: ModelConfig) -> Statistics | None:
    """Return mean and standard deviation by channel that ``model.weights`` was trained with, None if unknown.

    Args:
        config: Settings of the network, with weights.

    Raises:
        InputError: If torchvision does not have the weights, or their file cannot be read.
    """
    library, _, version = (config.weights or "").partition(":")
    name = str(config.arguments().get("name", config.target.rpartition(".")[2]))
    if library == "torchvision":
        return torchvision_normalisation(name, version)
    if config.weights == "timm":
        return timm_normalisation(name)
    return file_normalisation(Path(config.weights or "").expanduser())


def is_channels_last(setting: bool | str, model: nn.Module, *, sharded: bool) -> bool:
    """Return whether images and weights have the layout NHWC, in which convolutions are fastest.

    The setting "auto" chooses it if the network has 2-D convolutions and its weights are not sharded.
    """
    if setting == "auto":
        return not sharded and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return bool(setting)


def parameter_groups(model: nn.Module, num_classes: int, head_lr: float | None) -> list[Any]:
    """Return the parameters for the base optimizer: all trained ones, or the body and the head as two groups.

    Args:
        model: The network.
        num_classes: Its number of outputs, which identifies the head.
        head_lr: Initial learning rate of the head; None makes one group.

    Raises:
        InputError: If `head_lr` is given, and the network has no head.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    if head_lr is None:
        return params
    head = {id(param) for param in model.get_submodule(find_head(model, num_classes)).parameters()}
    return [
        {"params": [param for param in params if id(param) not in head]},
        {"params": [param for param in params if id(param) in head], "lr": head_lr},
    ]
