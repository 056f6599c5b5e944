"""Settings of the group ``optimizer``: the method (SAM, a variant, or none) and its base optimizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sam_runner.config.component import Component
from sam_runner.config.keys import (
    AT_LEAST_ONE,
    BELOW_ONE,
    CLOSED_UNIT,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    Range,
    key,
)

NAME = "name of the method, which each option sets"


@dataclass(frozen=True)
class BaseOptimizerConfig(Component):
    """Settings of every base optimizer. The class that ``optimizer.base._target_`` names gets all further keys."""

    schema: ClassVar[str] = ""
    lr: float = key("initial learning rate; set with lr=", 0.05, range=POSITIVE, short="lr")
    weight_decay: float = key("weight decay; set with weight_decay=", 0.0005, range=NOT_NEGATIVE, short="weight_decay")
    own_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SgdConfig(BaseOptimizerConfig):
    """Settings of optimizer/base=sgd."""

    schema: ClassVar[str] = "base/sgd"
    targets: ClassVar[tuple[str, ...]] = ("torch.optim.SGD",)
    momentum: float = key("momentum", 0.9, range=BELOW_ONE)
    nesterov: bool = key("true: Nesterov momentum, as in the paper's code", True)


@dataclass(frozen=True)
class AdamWConfig(BaseOptimizerConfig):
    """Settings of optimizer/base=adamw. betas and eps have the defaults of torch."""

    schema: ClassVar[str] = "base/adamw"
    targets: ClassVar[tuple[str, ...]] = ("torch.optim.AdamW",)
    betas: tuple[float, ...] = key(
        "decays of the mean gradient and mean squared gradient", (0.9, 0.999), range=BELOW_ONE
    )
    eps: float = key("term added to the denominator", 1e-8, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class RMSpropConfig(BaseOptimizerConfig):
    """Settings of optimizer/base=rmsprop. momentum, alpha and eps have the defaults of torch."""

    schema: ClassVar[str] = "base/rmsprop"
    targets: ClassVar[tuple[str, ...]] = ("torch.optim.RMSprop",)
    momentum: float = key("momentum", 0.0, range=BELOW_ONE)
    alpha: float = key("decay of the moving average of squared gradients", 0.99, range=BELOW_ONE)
    eps: float = key("term added to the denominator", 1e-8, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of every method. The options without SAM (optimizer=sgd, adamw, rmsprop and none) have no others."""

    schema: ClassVar[str] = "optimizer/sgd"
    name: str = key(NAME, "sgd", short="optimizer")
    m: int | None = key(
        "images in a group (m-sharpness). Each group of the batch has its own batch-norm statistics and perturbation;"
        " null: the batch is one group; with torchrun the part of each process is one, unless"
        " optimizer.sync_perturbation=true",
        None,
        range=AT_LEAST_ONE,
    )
    weight_decay_in_loss: bool = key(
        "true: add weight_decay/2 ||w||^2 to the loss of every pass, as the paper's code; false: the base optimizer"
        " decays the weights",
        False,
    )
    base: BaseOptimizerConfig = field(default_factory=lambda: SgdConfig(_target_="torch.optim.SGD"))

    @property
    def mean_cost(self) -> float:
        """Mean cost of a step, to estimate how long a run takes; 1 is one gradient evaluation of the whole batch."""
        return 1.0


@dataclass(frozen=True)
class NoMethodConfig(OptimizerConfig):
    """Settings of optimizer=none, optimizer=adamw and optimizer=rmsprop: the base optimizer without SAM."""

    schema: ClassVar[str] = "optimizer/none"
    name: str = key(NAME, "none", short="optimizer")


def _radius(meaning: str, default: float) -> float:
    """Declare `rho` with the default of a method."""
    radius: float = key(f"{meaning}; set with rho=", default, range=NOT_NEGATIVE, short="rho")
    return radius


@dataclass(frozen=True)
class RadiusConfig(OptimizerConfig):
    """Settings of every method that perturbs the weights."""

    rho: float = _radius("radius of the perturbation", 0.05)
    rho_schedule: Literal["constant", "linear", "cosine"] = key("how rho changes during training", "constant")
    rho_final: float = key(
        "rho at the end divided by the initial one, in a linear or cosine schedule", 0.0, range=NOT_NEGATIVE
    )
    rho_warmup_epochs: float = key("epochs during which rho rises linearly from 0", 0.0, range=NOT_NEGATIVE)

    @property
    def mean_cost(self) -> float:
        """Mean cost of a step: `perturbed_cost` in the share of steps with a perturbation, 1 in the others."""
        share = self.perturbed_share if self.rho > 0 else 0.0
        return 1 + share * (self.perturbed_cost - 1)

    @property
    def perturbed_cost(self) -> float:
        """Cost of a step with a perturbation: one gradient at w, one at w + eps."""
        return 2.0

    @property
    def perturbed_share(self) -> float:
        """Share of the steps that have a perturbation."""
        return 1.0


@dataclass(frozen=True)
class AscentConfig(RadiusConfig):
    """Settings of every method whose perturbation depends on the gradient."""

    sync_perturbation: bool = key(
        "true: all processes of torchrun use one perturbation, from all images; false: each process has its own, as in"
        " the paper",
        False,
    )


@dataclass(frozen=True)
class SamConfig(AscentConfig):
    """Settings of optimizer=sam."""

    schema: ClassVar[str] = "optimizer/sam"
    name: str = key(NAME, "sam", short="optimizer")
    rho: float = _radius("radius of the perturbation (eq. 2)", 0.05)
    p: float = key("p of the p-norm that rho limits (eq. 2)", 2.0, range=Range(1, math.inf, high_open=False))
    direction: Literal["gradient", "random"] = key(
        "direction of the perturbation, which always has length rho; gradient: eq. 2; random: drawn for each step (the"
        " paper's Appendix C.5)",
        "gradient",
    )
    ascent_steps: int = key(
        "number of gradients that find the perturbation (the paper's Table 11)", 1, range=AT_LEAST_ONE
    )
    ascent: Literal["sphere", "projected"] = key(
        "each further ascent step computes a new eps by eq. 2 from the gradient at w + eps; sphere: it replaces the old"
        " eps; projected: it is added to the old eps, and the sum is projected on the ball of radius rho",
        "sphere",
    )
    second_order: bool = key("true: keep the second-order term that eq. 3 drops (the paper's Appendix C.4)", False)

    @property
    def perturbed_cost(self) -> float:
        """Cost of a step with a perturbation; the second-order term costs two gradients more."""
        return 4.0 if self.second_order else 1.0 + self.ascent_steps


@dataclass(frozen=True)
class AsamKeys:
    """Settings of ASAM's perturbation."""

    eta: float = key("number added to |w| (Kwon et al., 2021; the authors' code)", 0.01, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class FisherSamKeys:
    """Settings of Fisher SAM's perturbation."""

    eta: float = key("weight of the squared gradient in the metric 1 + eta g^2", 1.0, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class FriendlySamKeys:
    """Settings of Friendly SAM's perturbation."""

    sigma: float = key(
        "factor of the mean gradient that is subtracted (Li et al., 2024)",
        1.0,
        range=CLOSED_UNIT,
    )
    decay: float = key("decay (lambda) of the mean gradient (the authors' script)", 0.95, range=BELOW_ONE)


@dataclass(frozen=True)
class SamOnKeys:
    """Settings of SAM-ON's perturbation."""

    only: Literal["normalisation", "others"] = key(
        "which parameters are perturbed: those of normalisation layers, or all others", "normalisation"
    )


@dataclass(frozen=True)
class LayerwiseSamKeys:
    """Settings of layer-wise SAM's perturbation."""

    scale_by_weights: bool = key("true: multiply the perturbation of each tensor by the norm of its weights", False)


@dataclass(frozen=True)
class AsamConfig(AsamKeys, AscentConfig):
    """Settings of optimizer=asam."""

    schema: ClassVar[str] = "optimizer/asam"
    name: str = key(NAME, "asam", short="optimizer")
    rho: float = _radius("radius in units of the weights (Kwon et al., 2021: 0.5 on CIFAR-10)", 0.5)


@dataclass(frozen=True)
class FisherSamConfig(FisherSamKeys, AscentConfig):
    """Settings of optimizer=fisher_sam."""

    schema: ClassVar[str] = "optimizer/fisher_sam"
    name: str = key(NAME, "fisher_sam", short="optimizer")
    rho: float = _radius("radius in the Fisher metric", 0.1)


@dataclass(frozen=True)
class FriendlySamConfig(FriendlySamKeys, AscentConfig):
    """Settings of optimizer=friendly_sam."""

    schema: ClassVar[str] = "optimizer/friendly_sam"
    name: str = key(NAME, "friendly_sam", short="optimizer")
    rho: float = _radius("radius of the perturbation (the authors' script)", 0.2)


@dataclass(frozen=True)
class SamOnConfig(SamOnKeys, AscentConfig):
    """Settings of optimizer=sam_on."""

    schema: ClassVar[str] = "optimizer/sam_on"
    name: str = key(NAME, "sam_on", short="optimizer")
    rho: float = _radius("radius of the perturbation (the authors' class)", 0.5)


@dataclass(frozen=True)
class LayerwiseSamConfig(LayerwiseSamKeys, AscentConfig):
    """Settings of optimizer=layerwise_sam."""

    schema: ClassVar[str] = "optimizer/layerwise_sam"
    name: str = key(NAME, "layerwise_sam", short="optimizer")
    rho: float = _radius("radius of each tensor's perturbation; our choice", 0.01)


@dataclass(frozen=True)
class MomentumSamConfig(RadiusConfig):
    """Settings of optimizer=momentum_sam."""

    schema: ClassVar[str] = "optimizer/momentum_sam"
    name: str = key(NAME, "momentum_sam", short="optimizer")
    rho: float = _radius(
        "radius of the perturbation (the authors' class; their commands use 3, which is worse on the digits)",
        0.3,
    )

    @property
    def perturbed_cost(self) -> float:
        """Cost of a step: one gradient, since the perturbation is the base optimizer's momentum."""
        return 1.0


@dataclass(frozen=True)
class EsamConfig(AscentConfig):
    """Settings of optimizer=esam."""

    schema: ClassVar[str] = "optimizer/esam"
    name: str = key(NAME, "esam", short="optimizer")
    beta: float = key("probability that a weight is perturbed (the authors' script)", 0.6, range=UP_TO_ONE)
    gamma: float = key(
        "fraction of the images whose gradient at w + eps is computed (the authors' script)", 0.5, range=UP_TO_ONE
    )

    @property
    def perturbed_cost(self) -> float:
        """Cost of a step: a gradient, a forward pass at w + eps, and a gradient of a part of the images."""
        return 2.0 if self.gamma == 1 else 1 + 1 / 3 + self.gamma


@dataclass(frozen=True)
class PerturbationConfig:
    """Settings of every option of optimizer/around. optimizer/around=sam has no others."""

    schema: ClassVar[str] = "around/sam"
    name: str = key(NAME, "sam")


@dataclass(frozen=True)
class AroundAsamConfig(AsamKeys, PerturbationConfig):
    """Settings of optimizer/around=asam."""

    schema: ClassVar[str] = "around/asam"
    name: str = key(NAME, "asam")


@dataclass(frozen=True)
class AroundFisherSamConfig(FisherSamKeys, PerturbationConfig):
    """Settings of optimizer/around=fisher_sam."""

    schema: ClassVar[str] = "around/fisher_sam"
    name: str = key(NAME, "fisher_sam")


@dataclass(frozen=True)
class AroundFriendlySamConfig(FriendlySamKeys, PerturbationConfig):
    """Settings of optimizer/around=friendly_sam."""

    schema: ClassVar[str] = "around/friendly_sam"
    name: str = key(NAME, "friendly_sam")


@dataclass(frozen=True)
class AroundSamOnConfig(SamOnKeys, PerturbationConfig):
    """Settings of optimizer/around=sam_on."""

    schema: ClassVar[str] = "around/sam_on"
    name: str = key(NAME, "sam_on")


@dataclass(frozen=True)
class AroundLayerwiseSamConfig(LayerwiseSamKeys, PerturbationConfig):
    """Settings of optimizer/around=layerwise_sam."""

    schema: ClassVar[str] = "around/layerwise_sam"
    name: str = key(NAME, "layerwise_sam")


@dataclass(frozen=True)
class AroundConfig(AscentConfig):
    """Settings of every method that uses the perturbation of another method, which optimizer/around= chooses."""

    around: PerturbationConfig = field(default_factory=PerturbationConfig)


@dataclass(frozen=True)
class GsamConfig(AroundConfig):
    """Settings of optimizer=gsam."""

    schema: ClassVar[str] = "optimizer/gsam"
    name: str = key(NAME, "gsam", short="optimizer")
    rho: float = _radius("radius at the largest learning rate", 0.05)
    alpha: float = key(
        "weight of the surrogate gap (default: pytorch-optimizer's)",
        0.4,
        range=NOT_NEGATIVE,
    )
    rho_min: float = key(
        "radius at the smallest learning rate; in between, it is linear in the learning rate",
        0.0,
        range=NOT_NEGATIVE,
    )


@dataclass(frozen=True)
class GradientNormConfig(AroundConfig):
    """Settings of optimizer=gradient_norm."""

    schema: ClassVar[str] = "optimizer/gradient_norm"
    name: str = key(NAME, "gradient_norm", short="optimizer")
    alpha: float = key("weight of the gradient at w + eps (the authors' recipe)", 0.8, range=CLOSED_UNIT)


@dataclass(frozen=True)
class WsamConfig(AroundConfig):
    """Settings of optimizer=wsam."""

    schema: ClassVar[str] = "optimizer/wsam"
    name: str = key(NAME, "wsam", short="optimizer")
    gamma: float = key("the sharpness has weight gamma / (1 - gamma) (the authors' code)", 0.9, range=BELOW_ONE)
    decoupled: bool = key("true: add the sharpness term after the base optimizer's step (the authors' code)", True)


@dataclass(frozen=True)
class LookSamConfig(AroundConfig):
    """Settings of optimizer=looksam."""

    schema: ClassVar[str] = "optimizer/looksam"
    name: str = key(NAME, "looksam", short="optimizer")
    interval: int = key("period k: every k-th step makes two passes", 5, range=AT_LEAST_ONE)
    alpha: float = key("length of the reused direction divided by that of the gradient", 0.7, range=NOT_NEGATIVE)

    @property
    def perturbed_share(self) -> float:
        """Share of the steps that have a perturbation."""
        return 1 / self.interval


@dataclass(frozen=True)
class IntervalConfig(AroundConfig):
    """Settings of optimizer=interval."""

    schema: ClassVar[str] = "optimizer/interval"
    name: str = key(NAME, "interval", short="optimizer")
    interval: int = key("period k: every k-th step makes two passes", 5, range=AT_LEAST_ONE)

    @property
    def perturbed_share(self) -> float:
        """Share of the steps that have a perturbation."""
        return 1 / self.interval


@dataclass(frozen=True)
class RandomSamConfig(AroundConfig):
    """Settings of optimizer=random_sam."""

    schema: ClassVar[str] = "optimizer/random_sam"
    name: str = key(NAME, "random_sam", short="optimizer")
    start: float = key("probability of a second pass in the first step", 0.5, range=CLOSED_UNIT)
    end: float = key(
        "probability of a second pass in the last step; it changes linearly from start to end", 0.5, range=CLOSED_UNIT
    )

    @property
    def perturbed_share(self) -> float:
        """Share of the steps that have a perturbation."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class AeSamConfig(AroundConfig):
    """Settings of optimizer=ae_sam."""

    schema: ClassVar[str] = "optimizer/ae_sam"
    name: str = key(NAME, "ae_sam", short="optimizer")
    start: float = key(
        "c in the first step; a step makes a second pass if the squared gradient norm is at least its running mean plus"
        " c standard deviations",
        1.0,
    )
    end: float = key("c in the last step; it changes linearly from start to end", -1.0)
    decay: float = key("decay of the running mean and variance of the squared gradient norm", 0.9, range=BELOW_ONE)

    @property
    def perturbed_share(self) -> float:
        """Share of the steps that have a perturbation: an estimate, since the data decide."""
        return 0.5


@dataclass(frozen=True)
class LateConfig(AroundConfig):
    """Settings of optimizer=late."""

    schema: ClassVar[str] = "optimizer/late"
    name: str = key(NAME, "late", short="optimizer")
    fraction: float = key("fraction of the steps that make a second pass", 0.2, range=CLOSED_UNIT)
    part: Literal["last", "first"] = key("which steps make the second pass: the last or the first", "last")

    @property
    def perturbed_share(self) -> float:
        """Share of the steps that have a perturbation."""
        return self.fraction


@dataclass(frozen=True)
class OwnMethodConfig(AscentConfig, Component):
    """Settings of your own subclass of sam_runner.sam.method.Method, which gets all further keys."""

    schema: ClassVar[str] = "optimizer/own"
    name: str = key("name of the method in reports", "own", short="optimizer")
    own_arguments: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the keys that are not settings of every method."""
        return dict(self.own_arguments)


BASES: tuple[type[BaseOptimizerConfig], ...] = (SgdConfig, AdamWConfig, RMSpropConfig)
AROUND: tuple[type[PerturbationConfig], ...] = (
    PerturbationConfig,
    AroundAsamConfig,
    AroundFisherSamConfig,
    AroundFriendlySamConfig,
    AroundSamOnConfig,
    AroundLayerwiseSamConfig,
)
METHODS: tuple[type[OptimizerConfig], ...] = (
    OptimizerConfig,
    NoMethodConfig,
    SamConfig,
    AsamConfig,
    FisherSamConfig,
    FriendlySamConfig,
    SamOnConfig,
    LayerwiseSamConfig,
    MomentumSamConfig,
    EsamConfig,
    GsamConfig,
    GradientNormConfig,
    WsamConfig,
    LookSamConfig,
    IntervalConfig,
    RandomSamConfig,
    AeSamConfig,
    LateConfig,
    OwnMethodConfig,
)
