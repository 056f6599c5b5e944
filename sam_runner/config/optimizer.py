"""Settings of the group ``optimizer``: the method (SAM or the base optimizer alone) and the base optimizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sam_runner.config.component import Component
from sam_runner.config.keys import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE, Range, key


@dataclass(frozen=True)
class BaseOptimizerConfig(Component):
    """Settings of every base optimizer. With ``optimizer/base=torch`` the class gets further keys."""

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
    nesterov: bool = key("whether momentum is Nesterov's, as in the paper's code", True)


@dataclass(frozen=True)
class AdamWConfig(BaseOptimizerConfig):
    """Settings of optimizer/base=adamw, with the defaults of torch."""

    schema: ClassVar[str] = "base/adamw"
    targets: ClassVar[tuple[str, ...]] = ("torch.optim.AdamW",)
    betas: tuple[float, ...] = key("decay of the two moving averages", (0.9, 0.999), range=BELOW_ONE)
    eps: float = key("term added to the denominator", 1e-8, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class RMSpropConfig(BaseOptimizerConfig):
    """Settings of optimizer/base=rmsprop, with the defaults of torch."""

    schema: ClassVar[str] = "base/rmsprop"
    targets: ClassVar[tuple[str, ...]] = ("torch.optim.RMSprop",)
    momentum: float = key("momentum", 0.0, range=BELOW_ONE)
    alpha: float = key("decay of the moving average of squared gradients", 0.99, range=BELOW_ONE)
    eps: float = key("term added to the denominator", 1e-8, range=NOT_NEGATIVE)


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of optimizer=sgd, the base optimizer alone. Every method has them."""

    schema: ClassVar[str] = "optimizer/sgd"
    name: str = key("name of the method", "sgd", short="optimizer")
    m: int | None = key(
        "images in a group. Each group has its own batch-norm statistics and, with SAM, its own perturbation"
        " (m-sharpness); null: the whole batch",
        None,
        range=AT_LEAST_ONE,
    )
    weight_decay_in_loss: bool = key(
        "true: weight decay is lambda/2 ||w||^2 in the loss of every pass, as in the paper's code;"
        " false: the base optimizer applies it",
        False,
    )
    base: BaseOptimizerConfig = field(default_factory=lambda: SgdConfig(_target_="torch.optim.SGD"))


@dataclass(frozen=True)
class SamConfig(OptimizerConfig):
    """Settings of optimizer=sam."""

    schema: ClassVar[str] = "optimizer/sam"
    name: str = key("name of the method", "sam", short="optimizer")
    rho: float = key("radius of the perturbation (eq. 2); set with rho=", 0.05, range=NOT_NEGATIVE, short="rho")
    p: float = key("norm of the ball (eq. 2)", 2.0, range=Range(1, math.inf, high_open=False))
    direction: Literal["gradient", "random"] = key(
        "direction of the perturbation; gradient: that of eq. 2; random: drawn for each step (the paper's"
        " Appendix C.5). Both have the length rho",
        "gradient",
    )
    ascent_steps: int = key(
        "gradient evaluations that find the perturbation (the paper's Table 11)", 1, range=AT_LEAST_ONE
    )
    ascent: Literal["sphere", "projected"] = key(
        "further ascent steps: sphere places eps on the sphere along the new gradient; projected adds a step and"
        " projects on the ball",
        "sphere",
    )
    second_order: bool = key("keep the second-order term that eq. 3 drops (the paper's Appendix C.4)", False)
    sync_perturbation: bool = key(
        "under torchrun, true: one perturbation from the images of all processes; false: each process has its own, as"
        " in the paper",
        False,
    )
    rho_schedule: Literal["constant", "linear", "cosine"] = key("how rho changes during training", "constant")
    rho_final: float = key("fraction of rho at the end of a linear or cosine schedule", 0.0, range=NOT_NEGATIVE)
    rho_warmup_epochs: float = key("epochs in which rho rises linearly from 0", 0.0, range=NOT_NEGATIVE)


BASES: tuple[type[BaseOptimizerConfig], ...] = (SgdConfig, AdamWConfig, RMSpropConfig)
METHODS: tuple[type[OptimizerConfig], ...] = (OptimizerConfig, SamConfig)
