"""Networks of torchvision and timm, constructed by their names."""

import importlib
from difflib import get_close_matches

import torchvision
from torch import nn

SMALL_IMAGE_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def _require_known(name: str, known: list[str], library: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"names: {', '.join(known)[:600]}"
        raise ValueError(f"name={name} is not a classification network of {library}; {hint}")


def torchvision_model(num_classes: int, *, name: str, image_size: int = 224) -> nn.Module:
    """Return a classification network of torchvision for images with three channels, newly initialised.

    Args:
        num_classes: Number of outputs, C.
        name: A name in ``torchvision.models.list_models()``.
        image_size: Side of the images in pixels, used by networks whose shape depends on it (ViT, MaxViT).

    Shape:
        (N, 3, H, W) -> (N, C).

    Raises:
        ValueError: If the name is not known, or the network does not support `image_size`.
    """
    _require_known(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):  # the objective has no term for their auxiliary classifiers
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except AssertionError as error:
        raise ValueError(f"{name} does not support images of {image_size} pixels: {error}") from error
    return model


def small_image_resnet(num_classes: int, in_channels: int, *, name: str) -> nn.Module:
    """Return a ResNet of torchvision for images of about 32 pixels, newly initialised.

    The first convolution has a kernel of 3 and stride 1, and there is no max pooling. This network is usual for
    comparisons of optimizers on CIFAR; He et al. use thinner networks for CIFAR (`sam_runner.models.resnet_cifar`).

    Args:
        num_classes: Number of outputs, C.
        in_channels: Number of input channels.
        name: resnet18, resnet34, resnet50, resnet101 or resnet152.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If the name is not known.
    """
    if name not in SMALL_IMAGE_RESNETS:
        raise ValueError(f"name={name} is not one of {', '.join(SMALL_IMAGE_RESNETS)}")
    model = torchvision_model(num_classes, name=name)
    first = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's first convolution
    model.conv1, model.maxpool = first, nn.Identity()
    return model


def timm_model(
    num_classes: int | None,
    in_channels: int,
    *,
    name: str,
    image_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Return a network of timm.

    Args:
        num_classes: Number of outputs, C; None: that of the published network.
        in_channels: Number of input channels.
        name: A name in ``timm.list_models()``. Names with a source (``hf-hub:``, ``local-dir:``) are not accepted.
        image_size: Side of the images in pixels, used by networks whose shape depends on it.
        pretrained: Load timm's weights, downloaded unless they are in its cache.

    Shape:
        (N, in_channels, H, W) -> (N, C).

    Raises:
        ValueError: If timm is not installed or does not know the name.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError("timm is not installed: pip install 'sam-runner[timm]'") from error
    architecture, _, tag = name.partition(".")
    _require_known(architecture, timm.list_models(), "timm")
    if tag:
        _require_known(name, timm.list_models(pretrained=True), "timm")
    published = timm.get_pretrained_cfg(name)
    has_fixed_size = published is not None and published.fixed_input_size
    model: nn.Module = timm.create_model(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_channels,
        img_size=image_size if has_fixed_size else None,
    )
    return model
