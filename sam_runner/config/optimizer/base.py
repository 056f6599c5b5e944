"""Settings of the base optimizers (optimizer/base), which change the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sam_runner.config.component import Component
from sam_runner.config.keys import BELOW_ONE, NOT_NEGATIVE, POSITIVE, key


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


BASES: tuple[type[BaseOptimizerConfig], ...] = (SgdConfig, AdamWConfig, RMSpropConfig)
