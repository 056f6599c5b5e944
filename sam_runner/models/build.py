"""From settings to the network: made, filled with weights, on its device."""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_runner.config.instantiate import construct, locate
from sam_runner.data.image_sets import Splits
from sam_runner.models.frozen_batchnorm import freeze_batchnorm
from sam_runner.models.pretrained import head_of, load_weights, read_weights, torchvision_weights
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import seed_everything

Settings = Mapping[str, Any]
log = logging.getLogger("sam_runner")


def build_model(settings: Settings, splits: Splits, device: torch.device) -> nn.Module:
    """The network for the data's channels and classes, initialised from the seed or from a file, on the device."""
    node = dict(settings["model"])
    weights = node.pop("weights", None)
    channels, height, width = splits.train.shape
    parameters = inspect.signature(locate(node["_target_"])).parameters
    if "in_channels" not in parameters and channels != 3:
        raise InputError(
            f"model {node['_target_']} is for 3 channels, the images have {channels}\n"
            "  use other data or a model of ours"
        )
    num_classes = len(splits.train.classes)
    if "num_classes" not in parameters and any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values()):
        node = {"num_classes": num_classes, **node}
    context = {"num_classes": num_classes, "in_channels": channels}
    if height == width and "image_size" not in node:
        context["image_size"] = height
    seed_everything(settings["seed"], "initialisation")
    model = construct(node, "model", **context)
    if not isinstance(model, nn.Module):
        raise InputError(f"model {node['_target_']} gives a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        log.info("%s", load_weights(model, _weights(weights, node, context), weights, num_classes))
    if settings["sync_batchnorm"]:
        if device.type != "cuda":
            raise InputError(f"sync_batchnorm=true needs CUDA devices, this is {device} (torch's SyncBatchNorm)")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if settings["freeze_batchnorm_stats"] and not freeze_batchnorm(model):
        raise InputError("freeze_batchnorm_stats has no effect: the model has no batch norm")
    layout = torch.channels_last if is_channels_last(settings, model) else torch.contiguous_format
    model = model.to(device, weights_dtype(settings["precision"]))
    laid_out: nn.Module = model.to(memory_format=layout)
    return laid_out


def weights_dtype(precision: str) -> torch.dtype:
    """Of the weights, and of the images."""
    return torch.float64 if precision == "fp64" else torch.float32


def _weights(source: str, node: Settings, context: Mapping[str, int]) -> dict[str, Tensor]:
    """The weights that `model.weights` names."""
    library, _, which = source.partition(":")
    target = node["_target_"]
    name = node.get("name", target.rpartition(".")[2])
    if library == "torchvision":
        if not (target.startswith("torchvision.models.") or target.endswith(".torchvision_model")):
            raise InputError(f"model.weights={source} is for networks of torchvision, not {target}")
        return torchvision_weights(name, which)
    if source == "timm":
        if not target.endswith(".timm_model"):
            raise InputError(f"model.weights=timm is for networks of timm, not {target}\n  use model=timm")
        published = {**context, "num_classes": None}
        try:
            state: dict[str, Tensor] = construct({**node, "pretrained": True}, "model", **published).state_dict()
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"timm has no weights for {name} here: {reason}\n  use model.weights=FILE") from error
        return state
    return read_weights(Path(source).expanduser())


def is_channels_last(settings: Settings, model: nn.Module) -> bool:
    """Whether images are laid out NHWC: as the fast convolutions of GPUs and CPUs want them."""
    if settings["channels_last"] == "auto":
        return settings["parallel"] != "fsdp" and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return bool(settings["channels_last"])


def parameter_groups(settings: Settings, model: nn.Module, num_classes: int) -> list[Any]:
    """What the base optimizer is given: the parameters, or body and head, where the head has a rate of its own."""
    params = [param for param in model.parameters() if param.requires_grad]
    if settings["head_lr"] is None:
        return params
    head = {id(param) for param in model.get_submodule(head_of(model, num_classes)).parameters()}
    body = [param for param in params if id(param) not in head]
    return [
        {"params": body},
        {"params": [param for param in params if id(param) in head], "lr": settings["head_lr"]},
    ]
