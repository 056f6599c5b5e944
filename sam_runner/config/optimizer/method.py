"""Settings that several methods share, those of the options without SAM, and those of a user's own method."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sam_runner.config.component import Component
from sam_runner.config.keys import AT_LEAST_ONE, NOT_NEGATIVE, key
from sam_runner.config.optimizer.base import BaseOptimizerConfig, SgdConfig

NAME = "name of the method, which each option sets"


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


def declare_radius(meaning: str, default: float) -> float:
    """Declare `rho` with the default of a method."""
    radius: float = key(f"{meaning}; set with rho=", default, range=NOT_NEGATIVE, short="rho")
    return radius


@dataclass(frozen=True)
class RadiusConfig(OptimizerConfig):
    """Settings of every method that perturbs the weights."""

    rho: float = declare_radius("radius of the perturbation", 0.05)
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
class OwnMethodConfig(AscentConfig, Component):
    """Settings of your own subclass of sam_runner.sam.method.Method, which gets all further keys."""

    schema: ClassVar[str] = "optimizer/own"
    name: str = key("name of the method in reports", "own", short="optimizer")
    own_arguments: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the keys that are not settings of every method."""
        return dict(self.own_arguments)
