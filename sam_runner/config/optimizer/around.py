"""Settings of the methods that use the perturbation of another method, which optimizer/around chooses."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sam_runner.config.keys import AT_LEAST_ONE, BELOW_ONE, CLOSED_UNIT, NOT_NEGATIVE, key
from sam_runner.config.optimizer.method import NAME, AscentConfig, declare_radius
from sam_runner.config.optimizer.perturbation import (
    AsamKeys,
    FisherSamKeys,
    FriendlySamKeys,
    LayerwiseSamKeys,
    SamOnKeys,
)


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
    rho: float = declare_radius("radius at the largest learning rate", 0.05)
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


AROUND: tuple[type[PerturbationConfig], ...] = (
    PerturbationConfig,
    AroundAsamConfig,
    AroundFisherSamConfig,
    AroundFriendlySamConfig,
    AroundSamOnConfig,
    AroundLayerwiseSamConfig,
)
