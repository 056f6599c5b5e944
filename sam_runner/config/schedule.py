"""Settings of the group ``schedule``: how the learning rate changes during training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sam_runner.config.component import Component
from sam_runner.config.keys import NOT_NEGATIVE, OPEN_UNIT, POSITIVE, key


@dataclass(frozen=True)
class ScheduleConfig(Component):
    """Settings of every schedule. The function of your own schedule gets all further keys."""

    schema: ClassVar[str] = "schedule/constant"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.training.schedules.constant",)
    warmup_epochs: float = key(
        "epochs during which the learning rate rises linearly from 0", 0.0, range=NOT_NEGATIVE, argument=False
    )
    own_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def smallest_factor(self) -> float:
        """The smallest learning rate relative to the initial one; 0 for a schedule that is constant or a user's."""
        return 0.0


@dataclass(frozen=True)
class DecayConfig(ScheduleConfig):
    """Settings of schedule=cosine and schedule=linear."""

    schema: ClassVar[str] = "schedule/decay"
    targets: ClassVar[tuple[str, ...]] = (
        "sam_runner.training.schedules.cosine",
        "sam_runner.training.schedules.linear",
    )
    final_factor: float = key("learning rate at the end divided by the initial one", 0.0, range=NOT_NEGATIVE)

    @property
    def smallest_factor(self) -> float:
        """The learning rate at the end relative to the initial one."""
        return self.final_factor


@dataclass(frozen=True)
class StepDecayConfig(ScheduleConfig):
    """Settings of schedule=step."""

    schema: ClassVar[str] = "schedule/step"
    targets: ClassVar[tuple[str, ...]] = ("sam_runner.training.schedules.step",)
    milestones: tuple[float, ...] = key(
        "fractions of the training after warm-up; after each, the learning rate is multiplied by gamma",
        (0.3, 0.6, 0.8),
        range=OPEN_UNIT,
    )
    gamma: float = key("factor of the learning rate at each milestone", 0.2, range=POSITIVE)

    @property
    def smallest_factor(self) -> float:
        """The learning rate after the last milestone relative to the initial one."""
        return float(self.gamma ** len(self.milestones))


SCHEDULES: tuple[type[ScheduleConfig], ...] = (ScheduleConfig, DecayConfig, StepDecayConfig)
