"""Networks of torchvision and timm by their names."""

import importlib
from difflib import get_close_matches

import torchvision
from torch import nn


def _require_known(name: str, known: list[str], library: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, 3)
        shown = f"did you mean {' or '.join(close)}?" if close else f"names: {', '.join(known)[:600]}"
        raise ValueError(f"name={name} is no classification network of {library}; {shown}")


def torchvision_model(num_classes: int, *, name: str, image_size: int = 224) -> nn.Module:
    """A classification network of torchvision for images of three channels, with fresh weights.

    Args:
        num_classes: C, the width of the output.
        name: As in ``torchvision.models.list_models()``.
        image_size: Side of the images; only networks whose shape depends on it (ViT, MaxViT) use it.

    Shape:
        (N, 3, H, W) -> (N, num_classes).

    Raises:
        ValueError: Where the name is not known, or `image_size` does not suit the network.
    """
    _require_known(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):  # their losses beside the logits are no part of our objective
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except AssertionError as error:
        raise ValueError(f"{name} cannot be made for images of {image_size} pixels: {error}") from error
    return model


def timm_model(
    num_classes: int | None,
    in_channels: int,
    *,
    name: str,
    image_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A network of timm.

    Args:
        num_classes: C, the width of the output; None: as published.
        in_channels: Channels of the input.
        name: As in ``timm.list_models()``. Sources elsewhere (``hf-hub:``, ``local-dir:``) are not taken.
        image_size: Side of the images; only networks whose shape depends on it use it.
        pretrained: Load timm's weights, which it downloads where they are not in its cache.

    Shape:
        (N, in_channels, H, W) -> (N, num_classes).

    Raises:
        ValueError: Where timm is not installed, or does not know the name.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError("timm is not installed: pip install 'sam-runner[timm]'") from error
    architecture, _, tag = name.partition(".")
    _require_known(architecture, timm.list_models(), "timm")
    if tag:
        _require_known(name, timm.list_models(pretrained=True), "timm")
    configuration = timm.get_pretrained_cfg(name)
    by_size = configuration is not None and configuration.fixed_input_size
    model: nn.Module = timm.create_model(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_channels,
        img_size=image_size if by_size else None,
    )
    return model
