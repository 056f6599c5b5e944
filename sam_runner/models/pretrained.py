"""Fine-tuning: weights of a file are put into a network, but for a head of other classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sam_runner.utils.errors import InputError
from sam_runner.utils.manifest import check_manifest
from sam_runner.utils.safe_load import load_tensors

SHOWN = 12  # keys in a message


def find_head(model: nn.Module, num_classes: int) -> str:
    """The name of the last layer: the last linear one (or convolution) with an output for each class.

    Raises:
        InputError: Where there is none.
    """
    found = ""
    for name, module in model.named_modules():
        outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and outputs == num_classes:
            found = name
    if not found:
        raise InputError(f"the model has no layer with {num_classes} outputs that could be its head")
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, of a ``state_dict`` that torch saved, or of a checkpoint of a run.

    A state dict may lie under ``model`` or ``state_dict``, and its names may begin with data parallelism's ``module.``.

    Raises:
        InputError: Where there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"model.weights={path} does not exist\n  accepted: a file, torchvision, timm, null")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"model.weights={path} is no safetensors file: {error}") from error
    else:
        manifest = path.with_suffix(".json")
        fault = check_manifest(manifest) if path.name.startswith("step-") and manifest.is_file() else None
        if fault:
            raise InputError(f"model.weights={path}: {fault}")
        state = load_tensors(path)
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"model.weights={path} holds no state_dict\n  save it with torch.save(model.state_dict(), PATH)"
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str, num_classes: int) -> str:
    """Put weights into a network; a head of other classes stays as it was initialised.

    Args:
        model: The network; it is changed in place.
        state: Its weights and buffers by name.
        source: Where they are from, for messages.
        num_classes: Outputs of the network.

    Returns:
        What was done, in words.

    Raises:
        InputError: Where a weight outside the head is missing, superfluous or of another shape; each is named.
    """
    own, head = model.state_dict(), f"{find_head(model, num_classes)}."
    fresh = [key for key in own if key.startswith(head) and (key not in state or state[key].shape != own[key].shape)]
    # A head is taken whole or not at all: weights of one kind and a bias of another would be neither.
    left_out = {key for key in {*own, *state} if fresh and key.startswith(head)}
    wanted = {key: value for key, value in own.items() if key not in left_out}
    given = {key: value for key, value in state.items() if key not in left_out}
    faults = [f"missing: {key} {tuple(wanted[key].shape)}" for key in wanted if key not in given]
    faults += [f"not in the model: {key} {tuple(given[key].shape)}" for key in given if key not in wanted]
    faults += [
        f"{key}: {tuple(given[key].shape)} given, {tuple(value.shape)} needed"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    if faults:
        more = [f"  and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        shown = [f"  {fault}" for fault in faults[:SHOWN]]
        raise InputError("\n".join([f"model.weights={source} does not fit the model", *shown, *more]))
    model.load_state_dict(given, strict=False)
    number = sum(value.numel() for value in given.values())
    return f"{number:,} weights from {source}" + (f"; the head {head[:-1]} is fresh" if fresh else "")


def download_torchvision_weights(name: str, which: str = "") -> dict[str, Tensor]:
    """Published weights of a torchvision network, downloaded where torch's cache lacks them.

    Args:
        name: Of the network.
        which: Of the weights, as ``IMAGENET1K_V1``; empty: torchvision's default.

    Raises:
        InputError: Where there are none, or they cannot be downloaded.
    """
    from torchvision.models import get_model_weights

    try:
        entries = get_model_weights(name)
    except ValueError as error:
        raise InputError(f"model.weights=torchvision: torchvision has no weights for {name}") from error
    known = list(entries.__members__)
    if which not in ("", *known):
        raise InputError(f"model.weights=torchvision:{which} does not exist\n  accepted: {', '.join(known) or 'none'}")
    weights = entries[which] if which else entries.DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: the sum is wrong
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise InputError(
            f"{weights.url} cannot be had: {error}\n  put the file at {cache}, or give it as model.weights=FILE"
        ) from error
    return state
