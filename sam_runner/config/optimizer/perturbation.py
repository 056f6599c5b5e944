"""Settings of SAM and of the methods that have a perturbation of their own."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from sam_runner.config.keys import AT_LEAST_ONE, BELOW_ONE, CLOSED_UNIT, NOT_NEGATIVE, UP_TO_ONE, Range, key
from sam_runner.config.optimizer.method import NAME, AscentConfig, RadiusConfig, declare_radius


@dataclass(frozen=True)
class SamConfig(AscentConfig):
    """Settings of optimizer=sam."""

    schema: ClassVar[str] = "optimizer/sam"
    name: str = key(NAME, "sam", short="optimizer")
    rho: float = declare_radius("radius of the perturbation (eq. 2)", 0.05)
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
    rho: float = declare_radius("radius in units of the weights (Kwon et al., 2021: 0.5 on CIFAR-10)", 0.5)


@dataclass(frozen=True)
class FisherSamConfig(FisherSamKeys, AscentConfig):
    """Settings of optimizer=fisher_sam."""

    schema: ClassVar[str] = "optimizer/fisher_sam"
    name: str = key(NAME, "fisher_sam", short="optimizer")
    rho: float = declare_radius("radius in the Fisher metric", 0.1)


@dataclass(frozen=True)
class FriendlySamConfig(FriendlySamKeys, AscentConfig):
    """Settings of optimizer=friendly_sam."""

    schema: ClassVar[str] = "optimizer/friendly_sam"
    name: str = key(NAME, "friendly_sam", short="optimizer")
    rho: float = declare_radius("radius of the perturbation (the authors' script)", 0.2)


@dataclass(frozen=True)
class SamOnConfig(SamOnKeys, AscentConfig):
    """Settings of optimizer=sam_on."""

    schema: ClassVar[str] = "optimizer/sam_on"
    name: str = key(NAME, "sam_on", short="optimizer")
    rho: float = declare_radius("radius of the perturbation (the authors' class)", 0.5)


@dataclass(frozen=True)
class LayerwiseSamConfig(LayerwiseSamKeys, AscentConfig):
    """Settings of optimizer=layerwise_sam."""

    schema: ClassVar[str] = "optimizer/layerwise_sam"
    name: str = key(NAME, "layerwise_sam", short="optimizer")
    rho: float = declare_radius("radius of each tensor's perturbation; our choice", 0.01)


@dataclass(frozen=True)
class MomentumSamConfig(RadiusConfig):
    """Settings of optimizer=momentum_sam."""

    schema: ClassVar[str] = "optimizer/momentum_sam"
    name: str = key(NAME, "momentum_sam", short="optimizer")
    rho: float = declare_radius(
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
