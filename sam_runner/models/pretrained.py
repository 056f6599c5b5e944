"""Weights to start from: read them from a file or from torchvision, and load them into a network."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sam_runner.utils.errors import InputError
from sam_runner.utils.files import NORMALISATION_FILE, read_json
from sam_runner.utils.manifest import check_manifest
from sam_runner.utils.safe_load import load_tensors

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation by channel
MAX_LISTED_KEYS = 12  # in an error message
LIBRARIES = ("torchvision", "timm")  # sources of weights that are no files
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")  # classifiers that GoogLeNet and Inception v3 have for training only
OWN_CONVERSION = ("googlenet", "inception_v3")  # torchvision's convert images from ImageNet's mean and std to 0.5
OTHER_SIZE = "  position embeddings fit one size of images: give data.image_size the value that the weights have"
OTHER_NETWORK = "  weights fit the network that they were saved from: choose it by model and its settings"


def find_head(model: nn.Module, num_classes: int) -> str:
    """Return the name of the head: the last linear layer or convolution with one output for each class.

    Raises:
        InputError: If the network has no such layer.
    """
    head = ""
    for name, module in model.named_modules():
        outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and outputs == num_classes:
            head = name
    if not head:
        raise InputError(
            f"the model has no layer with {num_classes} outputs, one for each class, that can be its head\n"
            f"  accepted: an nn.Linear or nn.Conv2d with {num_classes} outputs; otherwise leave out model.weights and "
            "head_lr"
        )
    return head


def require_weights_file(weights: str | None) -> None:
    """Raise InputError if ``model.weights`` is a path and there is no such file."""
    if weights is None or weights.partition(":")[0] in LIBRARIES or os.path.isfile(path := os.path.expanduser(weights)):
        return
    reason = "is a folder" if os.path.isdir(path) else "does not exist"
    raise InputError(f"model.weights={weights} {reason}\n  accepted: a file, torchvision, timm, null")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary from a ``.safetensors`` file, a file of `torch.save`, or a checkpoint of a run.

    The state dictionary may be the entry ``model`` or ``state_dict`` of the file.

    Returns:
        Weights and buffers by name, on the CPU.

    Raises:
        InputError: If the file does not exist, is damaged, or holds no state dictionary.
    """
    require_weights_file(str(path))
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _no_safetensors(path, error) from error
    else:
        manifest = path.with_suffix(".json")
        fault = check_manifest(manifest) if path.name.startswith("step-") and manifest.is_file() else None
        if fault:
            raise InputError(f"model.weights={path}: {fault}\n  give another checkpoint")
        state = load_tensors(path)
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"model.weights={path} holds no state_dict\n  save it with torch.save(model.state_dict(), PATH)"
        )
    return {str(key): value for key, value in state.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str, num_classes: int) -> str:
    """Load weights and buffers into a network, in place.

    If the head in `state` is missing or has another shape, the network keeps the head that it was initialised with. A
    prefix that all names in `state` have, and no name of the network, is removed: ``module.`` of data-parallel
    networks, ``_orig_mod.`` of compiled ones, ``backbone.``. The counters ``num_batches_tracked`` may be missing, and
    `AUXILIARY` classifiers are left out.

    Args:
        model: The network.
        state: Weights and buffers by name.
        source: The value of ``model.weights``, for messages.
        num_classes: Number of outputs of the network.

    Returns:
        A log message: the number of weights, their source, and whether the head is newly initialised.

    Raises:
        InputError: If an entry outside the head is missing, unexpected, of another shape or not finite; the message
            lists them.
    """
    own, head = model.state_dict(), f"{find_head(model, num_classes)}."
    state = {
        key: value for key, value in _remove_prefixes(state, own).items() if key in own or not key.startswith(AUXILIARY)
    }
    head_fits = all(key in state and state[key].shape == own[key].shape for key in own if key.startswith(head))
    # The head is loaded completely or not at all, so that a loaded weight never has a newly initialised bias.
    expected, given = (
        {key: value for key, value in entries.items() if head_fits or not key.startswith(head)}
        for entries in (own, state)
    )
    faults = [
        f"missing: {key} {tuple(expected[key].shape)}"
        for key in expected
        if key not in given and not key.endswith(".num_batches_tracked")  # torch before 0.4.1 had none
    ]
    faults += [f"not in the model: {key} {tuple(given[key].shape)}" for key in given if key not in expected]
    faults += [
        f"{key}: {tuple(given[key].shape)} given, {tuple(value.shape)} needed"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    if faults:
        is_position = any("pos_embed" in fault and fault.endswith(" needed") for fault in faults)
        advice = OTHER_SIZE if is_position else OTHER_NETWORK
        _refuse(f"model.weights={source} does not fit the model", faults, advice)
    params = {name for name, _ in model.named_parameters()}
    faults = [
        f"{key} {tuple(value.shape)}"
        for key, value in given.items()
        if value.isnan().any() or (key in params and value.isinf().any())  # a buffer, such as a mask, may be infinite
    ]
    if faults:
        _refuse(f"model.weights={source} has values that are not finite", faults, "  give weights of an earlier epoch")
    model.load_state_dict(given, strict=False)
    count = sum(value.numel() for value in given.values())
    return f"{count:,} weights from {source}" + ("" if head_fits else f"; the head {head[:-1]} is newly initialised")


def _remove_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the first components that all names in `state` have and no name of the network."""
    first = {key.partition(".")[0] for key in state}
    while len(first) == 1 and all("." in key for key in state):
        prefix = f"{first.pop()}."
        if any(key.startswith(prefix) for key in own):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        first = {key.partition(".")[0] for key in state}
    return state


def _refuse(head: str, faults: list[str], advice: str) -> NoReturn:
    more = [f"  and {len(faults) - MAX_LISTED_KEYS} more"] if len(faults) > MAX_LISTED_KEYS else []
    raise InputError("\n".join([head, *(f"  {fault}" for fault in faults[:MAX_LISTED_KEYS]), *more, advice]))


def download_torchvision_weights(name: str, version: str) -> dict[str, Tensor]:
    """Return published weights of a torchvision network, downloaded unless they are in torch's cache.

    Args:
        name: Name of the network.
        version: Name of the weights, e.g. ``IMAGENET1K_V1``; empty: torchvision's default.

    Raises:
        InputError: If torchvision has no such weights, or they cannot be downloaded.
    """
    weights = _torchvision_weights(name, version)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: the file's hash is wrong
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise InputError(
            f"{weights.url} could not be downloaded: {error}\n"
            f"  put the file at {cache}, or name it with model.weights=FILE"
        ) from error
    return state


def torchvision_normalisation(name: str, version: str = "") -> Statistics | None:
    """Return mean and standard deviation by channel that torchvision's weights were trained with.

    Arguments and errors are those of `download_torchvision_weights`; nothing is downloaded.
    """
    transforms = _torchvision_weights(name, version).transforms()
    if name in OWN_CONVERSION:
        return (0.5,) * 3, (0.5,) * 3
    return _statistics(getattr(transforms, "mean", None), getattr(transforms, "std", None))


def timm_normalisation(name: str) -> Statistics | None:
    """Return mean and standard deviation by channel that timm's weights were trained with."""
    import timm

    published = timm.get_pretrained_cfg(name)
    return None if published is None else _statistics(published.mean, published.std)


def file_normalisation(path: Path) -> Statistics | None:
    """Return mean and standard deviation by channel that the weights of a file were trained with, None if unknown.

    Args:
        path: A checkpoint of a run (the run stores both), or a safetensors file with the metadata ``mean`` and ``std``
            (each a JSON list of numbers).

    Raises:
        InputError: If a safetensors file cannot be read.
    """
    if path.parent.name == "checkpoints":
        stored = read_json(path.parent.parent / NORMALISATION_FILE)
        return _statistics(stored.get("mean"), stored.get("std")) if isinstance(stored, dict) else None
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return _statistics(*(json.loads(metadata.get(name, "null")) for name in ("mean", "std")))
    except (SafetensorError, OSError, ValueError) as error:
        raise _no_safetensors(path, error) from error


def _no_safetensors(path: Path, error: Exception) -> InputError:
    return InputError(
        f"model.weights={path} is not a safetensors file: {error}\n"
        "  write it again, or give a file of torch.save a name that ends with .pt"
    )


def _statistics(mean: Any, std: Any) -> Statistics | None:
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple) or len(mean) != len(std):
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def _torchvision_weights(name: str, version: str) -> Any:
    """Return the entry of torchvision's list of weights; errors as of `download_torchvision_weights`."""
    from torchvision.models import get_model_weights

    try:
        entries = get_model_weights(name)
    except ValueError as error:
        raise InputError(
            f"model.weights=torchvision: torchvision has no weights for {name}\n  use model.weights=FILE or null"
        ) from error
    known = list(entries.__members__)
    if version not in ("", *known):
        accepted = ", ".join(known) or "none"
        raise InputError(f"model.weights=torchvision:{version} does not exist\n  accepted: {accepted}")
    return entries[version] if version else entries.DEFAULT
