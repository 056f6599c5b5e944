"""Schedules of the learning rate and of rho: pure functions of the step, without state to restore.

Each factory returns a function from the step t = 0, 1, ..., total_steps - 1 to a factor of the initial value. With W
warm-up steps the factor is (t + 1) / W for t < W, and the schedule runs over the remaining steps.
"""

import inspect
import math
from collections.abc import Callable, Sequence

from sam_runner.config.instantiate import instantiate, locate
from sam_runner.config.optimizer.method import OptimizerConfig, RadiusConfig
from sam_runner.config.schedule import ScheduleConfig
from sam_runner.utils.errors import InputError

Schedule = Callable[[int], float]


def _add_warmup(decay: Callable[[float], float], total_steps: int, warmup_steps: int) -> Schedule:
    """Return a schedule with linear warm-up.

    Args:
        decay: Function from the completed fraction of the steps after warm-up, in [0, 1], to the factor.
        total_steps: Number of steps of the training.
        warmup_steps: Number of warm-up steps.
    """
    remaining = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay(min((step - warmup_steps) / remaining, 1.0))

    return factor


def constant(*, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Return a schedule that is 1 after warm-up."""
    return _add_warmup(lambda _: 1.0, total_steps, warmup_steps)


def cosine(*, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """Return half a cosine from 1 to f = `final_factor`: f + (1 - f) (1 + cos(pi t / T)) / 2 at step t of T.

    Loshchilov and Hutter, 2017. The paper's code uses it with warm-up 0 and f = 0 (flax_training.py, `cosine`).
    """
    return _add_warmup(
        lambda fraction: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * fraction)) / 2,
        total_steps,
        warmup_steps,
    )


def linear(*, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """Return a linear schedule from 1 to `final_factor`."""
    return _add_warmup(lambda fraction: 1 + (final_factor - 1) * fraction, total_steps, warmup_steps)


def step(
    *, total_steps: int, warmup_steps: int = 0, milestones: Sequence[float] = (0.3, 0.6, 0.8), gamma: float = 0.2
) -> Schedule:
    """Return a schedule that multiplies by `gamma` at each milestone.

    Args:
        total_steps: Number of steps of the training.
        warmup_steps: Number of warm-up steps.
        milestones: Fractions of the steps after warm-up, in (0, 1). The defaults with gamma 0.2 are common for wide
            residual networks (60, 120, 160 of 200 epochs; Zagoruyko and Komodakis, 2016).
        gamma: Factor of the learning rate at each milestone.
    """
    return _add_warmup(
        lambda fraction: gamma ** sum(fraction >= milestone for milestone in milestones), total_steps, warmup_steps
    )


def build_lr(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """Return a function from the step to the factor of the initial learning rate.

    Raises:
        InputError: If the warm-up does not end before the training does, the schedule cannot be built, or a user's
            function has no argument for the warm-up that is set.
    """
    warmup_steps = _count_warmup_steps(config.warmup_epochs, "schedule.warmup_epochs", total_steps, steps_per_epoch)
    if config.warmup_epochs and "warmup_steps" not in inspect.signature(locate(config.target)).parameters:
        raise InputError(
            f"schedule.warmup_epochs={config.warmup_epochs:g} has no effect: {config.target} has no argument "
            "warmup_steps\n  add the argument, or leave schedule.warmup_epochs out"
        )
    schedule: Schedule = instantiate(config, "schedule", total_steps=total_steps, warmup_steps=warmup_steps)
    return schedule


def build_rho(config: OptimizerConfig, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a function from the step to the radius of the perturbation, 0 for the base optimizer alone.

    Raises:
        InputError: If the warm-up does not end before the training does.
    """
    if not isinstance(config, RadiusConfig) or config.rho == 0:
        return lambda _: 0.0
    rho, name, final = config.rho, "optimizer.rho_warmup_epochs", config.rho_final
    warmup = {
        "total_steps": total_steps,
        "warmup_steps": _count_warmup_steps(config.rho_warmup_epochs, name, total_steps, steps_per_epoch),
    }
    if config.rho_schedule == "constant":
        factor = constant(**warmup)
    else:
        factor = {"linear": linear, "cosine": cosine}[config.rho_schedule](**warmup, final_factor=final)
    return lambda step: rho * factor(step)


def _count_warmup_steps(epochs: float, key: str, total_steps: int, steps_per_epoch: int) -> int:
    """Return the number of warm-up steps; the warm-up must end before the training does.

    Raises:
        InputError: If it does not.
    """
    steps = round(epochs * steps_per_epoch)
    if steps >= total_steps:
        raise InputError(
            f"{key}={epochs:g} is {steps} steps, the whole training is {total_steps}\n  use a smaller {key}"
        )
    return steps
