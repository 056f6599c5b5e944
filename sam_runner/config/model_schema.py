"""The typed keys of the group model; see `sam_runner.config.schema`."""

from dataclasses import dataclass
from enum import Enum

Init = Enum("Init", ["fan_in", "fan_out", "sam", "torch"])


@dataclass
class Model:
    """Keys of every model; `weights` is the program's, the others are arguments of what `_target_` names."""

    _target_: str
    weights: str | None


@dataclass
class SmallCnn(Model):
    """Keys of model=small_cnn."""

    width: int
    batch_norm: bool
    dropout: float


@dataclass
class ResnetCifar(Model):
    """Keys of the CIFAR residual networks."""

    depth: int
    init: Init


@dataclass
class WideResnet(ResnetCifar):
    """Keys of the wide residual networks."""

    widen_factor: int
    dropout: float
    batch_norm: bool


@dataclass
class ByWidth(ResnetCifar):
    """Keys of the Shake-Shake networks and of model=resnet32_mentormix."""

    width: int


@dataclass
class PyramidNet(ResnetCifar):
    """Keys of the PyramidNets."""

    alpha: int
    bottleneck: bool
    shakedrop: float


@dataclass
class Published(Model):
    """Keys of the networks of torchvision and timm."""

    name: str


MODELS: dict[str, type] = {
    "model/small_cnn": SmallCnn, "model/resnet_cifar": ResnetCifar, "model/wide_resnet": WideResnet, "model/by_width":
    ByWidth, "model/pyramidnet": PyramidNet, "model/published": Published,
}  # fmt: skip
