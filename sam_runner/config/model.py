"""Settings of the group ``model``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sam_runner.config.component import Component
from sam_runner.config.keys import AT_LEAST_ONE, BELOW_ONE, CLOSED_UNIT, Range, key

DEPTH = Range(8)
PUBLISHED_WEIGHTS = ("torchvision", "timm")  # values of model.weights that are not paths
Init = Literal["fan_in", "fan_out", "sam", "torch"]
INIT = (
    "initialisation of the convolutions; fan_in, fan_out: of He et al.; sam: of the SAM paper's code; torch: PyTorch's"
)


@dataclass(frozen=True)
class ModelConfig(Component):
    """Settings of every network. The function of your own network gets all further keys."""

    weights: str | None = key(
        "weights to start from: a file (.safetensors, a state_dict, a checkpoint of a run), or published weights of"
        " torchvision or timm, e.g. torchvision:IMAGENET1K_V1; null: random weights from the seed",
        None,
        argument=False,
        path=True,
    )
    own_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SmallCnnConfig(ModelConfig):
    """Settings of model=small_cnn."""

    schema: ClassVar[str] = "model/small_cnn"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.models.small_cnn.SmallCNN",)
    width: int = key("channels of the first two convolutions; the last two have twice as many", 32, range=AT_LEAST_ONE)
    batch_norm: bool = key("true: batch norm follows each convolution", True)
    dropout: float = key("dropout probability before the last layer", 0.0, range=BELOW_ONE)


@dataclass(frozen=True)
class ResnetCifarConfig(ModelConfig):
    """Settings of the residual networks for CIFAR."""

    schema: ClassVar[str] = "model/resnet_cifar"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.models.resnet_cifar.ResNetCifar",)
    depth: int = key("number of weighted layers, 6n + 2", 20, range=DEPTH)
    init: Init = key(INIT, "fan_in")


@dataclass(frozen=True)
class WideResnetConfig(ModelConfig):
    """Settings of the wide residual networks."""

    schema: ClassVar[str] = "model/wide_resnet"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.models.wide_resnet.WideResNet",)
    depth: int = key("number of convolutions, 6n + 4", 28, range=DEPTH)
    init: Init = key(INIT, "fan_out")
    widen_factor: int = key("number of channels divided by that of a residual network", 10, range=AT_LEAST_ONE)
    dropout: float = key(
        "dropout probability between the convolutions of a block; the SAM paper uses none", 0.0, range=BELOW_ONE
    )
    batch_norm: bool = key("false: no batch norm, as in the SAM paper's section 4.2", True)


@dataclass(frozen=True)
class BranchWidthConfig(ModelConfig):
    """Settings of the Shake-Shake networks and of model=resnet32_mentormix."""

    schema: ClassVar[str] = "model/branch_width"
    targets: ClassVar[tuple[str, ...]] = (
        "sam_runner.models.shake_shake.ShakeShakeNet",
        "sam_runner.models.resnet_mentormix.ResNetMentorMix",
    )
    depth: int = key("number of weighted layers, 6n + 2", 26, range=DEPTH)
    init: Init = key(INIT, "fan_out")
    width: int = key("channels of the first stage; with Shake-Shake, of each branch of it", 96, range=AT_LEAST_ONE)


@dataclass(frozen=True)
class PyramidNetConfig(ModelConfig):
    """Settings of the PyramidNets."""

    schema: ClassVar[str] = "model/pyramidnet"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.models.pyramidnet.PyramidNet",)
    depth: int = key("number of weighted layers: 9n + 2 with bottlenecks, else 6n + 2", 272, range=DEPTH)
    init: Init = key(INIT, "fan_out")
    alpha: int = key("channels added from the first to the last block", 200, range=AT_LEAST_ONE)
    bottleneck: bool = key("true: a block has three convolutions (1x1, 3x3, 1x1)", True)
    shakedrop: float = key("largest probability of ShakeDrop; 0: no ShakeDrop", 0.0, range=CLOSED_UNIT)


@dataclass(frozen=True)
class PublishedModelConfig(ModelConfig):
    """Settings of the networks of torchvision and timm."""

    schema: ClassVar[str] = "model/published"
    targets: ClassVar[tuple[str, ...]] = (
        "sam_runner.models.torchvision_timm.torchvision_model",
        "sam_runner.models.torchvision_timm.timm_model",
        "sam_runner.models.torchvision_timm.small_image_resnet",
    )
    name: str = key("name of the network in torchvision.models.list_models() or timm.list_models()")


MODELS: tuple[type[ModelConfig], ...] = (
    SmallCnnConfig,
    ResnetCifarConfig,
    WideResnetConfig,
    BranchWidthConfig,
    PyramidNetConfig,
    PublishedModelConfig,
)
