"""Build the network of a run: construct it, load weights, put it on its device; and group its parameters."""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_runner.config.instantiate import construct, locate
from sam_runner.data.image_sets import Splits
from sam_runner.models.pretrained import download_torchvision_weights, find_head, load_weights, read_weights
from sam_runner.sam import batch_statistics
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import seed_everything

Settings = Mapping[str, Any]
log = logging.getLogger("sam_runner")


def build_model(settings: Settings, splits: Splits, device: torch.device) -> nn.Module:
    """Return the network for the channels and classes of the data, with its weights, on the device.

    The weights are initialised from the seed, then replaced by those of ``model.weights`` if it is set.

    Raises:
        InputError: If the network does not support the data, or one of the settings has no effect on it.
    """
    node = dict(settings["model"])
    weights = node.pop("weights", None)
    channels, height, width = splits.train.shape
    parameters = inspect.signature(locate(node["_target_"])).parameters
    if "in_channels" not in parameters and channels != 3:
        raise InputError(
            f"model {node['_target_']} is for 3 channels, the images have {channels}\n"
            "  use other data, or a model with in_channels such as model=resnet20"
        )
    num_classes = len(splits.train.classes)
    if "num_classes" not in parameters and any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values()):
        node = {"num_classes": num_classes, **node}
    data_options = {"num_classes": num_classes, "in_channels": channels}
    if height == width and "image_size" not in node:
        data_options["image_size"] = height
    seed_everything(settings["seed"], "initialisation")
    model = construct(node, "model", **data_options)
    if not isinstance(model, nn.Module):
        raise InputError(f"model {node['_target_']} returns a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        log.info("%s", load_weights(model, _read_weights(weights, node, data_options), weights, num_classes))
    if settings["sync_batchnorm"]:
        if device.type != "cuda":
            raise InputError(
                f"sync_batchnorm=true needs CUDA devices (torch's SyncBatchNorm), this is {device}\n"
                "  use sync_batchnorm=false or device=cuda"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if settings["freeze_batchnorm_stats"] and not batch_statistics.freeze(model):
        raise InputError(
            "freeze_batchnorm_stats has no effect: the model has no batch norm\n  use freeze_batchnorm_stats=false"
        )
    layout = torch.channels_last if is_channels_last(settings, model) else torch.contiguous_format
    model = model.to(device, weights_dtype(settings["precision"]))
    laid_out: nn.Module = model.to(memory_format=layout)
    return laid_out


def weights_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights and images: float64 for ``precision=fp64``, otherwise float32."""
    return torch.float64 if precision == "fp64" else torch.float32


def _read_weights(source: str, node: Settings, data_options: Mapping[str, int]) -> dict[str, Tensor]:
    """Return weights and buffers by name from the source in ``model.weights``.

    Args:
        source: ``torchvision``, ``torchvision:NAME``, ``timm``, or the path of a file.
        node: The settings of the model's group.
        data_options: Arguments of the network that come from the data.
    """
    library, _, version = source.partition(":")
    target = node["_target_"]
    name = node.get("name", target.rpartition(".")[2])
    if library == "torchvision":
        if not (target.startswith("torchvision.models.") or target.endswith(".torchvision_model")):
            raise InputError(
                f"model.weights={source} is for networks of torchvision, not {target}\n  use model=torchvision"
            )
        return download_torchvision_weights(name, version)
    if source == "timm":
        if not target.endswith(".timm_model"):
            raise InputError(f"model.weights=timm is for networks of timm, not {target}\n  use model=timm")
        published = {**data_options, "num_classes": None}
        try:
            state: dict[str, Tensor] = construct({**node, "pretrained": True}, "model", **published).state_dict()
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"timm has no weights for {name}: {reason}\n  use model.weights=FILE") from error
        return state
    return read_weights(Path(source).expanduser())


def is_channels_last(settings: Settings, model: nn.Module) -> bool:
    """Return whether images and weights are laid out NHWC in memory, which fast convolutions need.

    With ``channels_last=auto`` they are if the network has convolutions and its weights are not sharded.
    """
    if settings["channels_last"] == "auto":
        return settings["parallel"] != "fsdp" and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return bool(settings["channels_last"])


def parameter_groups(settings: Settings, model: nn.Module, num_classes: int) -> list[Any]:
    """Return the trainable parameters for the base optimizer; with ``head_lr`` in two groups, body and head."""
    params = [param for param in model.parameters() if param.requires_grad]
    if settings["head_lr"] is None:
        return params
    head = {id(param) for param in model.get_submodule(find_head(model, num_classes)).parameters()}
    body = [param for param in params if id(param) not in head]
    return [
        {"params": body},
        {"params": [param for param in params if id(param) in head], "lr": settings["head_lr"]},
    ]
