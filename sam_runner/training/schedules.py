"""Learning-rate and rho schedules: pure functions of the step, so that a resumed run has nothing to restore.

Each factory returns a function from the step t = 0, 1, ..., total_steps - 1 to a factor of the initial value. With
warm-up over W steps the factor rises linearly, (t + 1) / W for t < W, and the schedule proper runs over the remaining
steps.
"""

import math
from collections.abc import Callable, Sequence

from sam_runner.config.instantiate import instantiate
from sam_runner.config.optimizer import OptimizerConfig, SamConfig
from sam_runner.config.schedule import ScheduleConfig
from sam_runner.utils.errors import InputError

Schedule = Callable[[int], float]


def _warmed_up(after: Callable[[float], float], total_steps: int, warmup_steps: int) -> Schedule:
    """Linear warm-up, then `after` of the fraction of the remaining steps that is done, in [0, 1]."""
    remaining = max(total_steps - warmup_steps, 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return after(min((step - warmup_steps) / remaining, 1.0))

    return factor


def constant(*, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Factor 1 after warm-up."""
    return _warmed_up(lambda _: 1.0, total_steps, warmup_steps)


def cosine(*, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `final_factor`: final_factor + (1 - final_factor) (1 + cos(pi t / T)) / 2, per step.

    The schedule of the paper's code (flax_training.py, `cosine`, warm-up 0, final 0); Loshchilov and Hutter, 2017.
    """
    return _warmed_up(
        lambda done: final_factor + (1 - final_factor) * (1 + math.cos(math.pi * done)) / 2, total_steps, warmup_steps
    )


def linear(*, total_steps: int, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """A straight line from 1 to `final_factor`."""
    return _warmed_up(lambda done: 1 + (final_factor - 1) * done, total_steps, warmup_steps)


def step(
    *, total_steps: int, warmup_steps: int = 0, milestones: Sequence[float] = (0.3, 0.6, 0.8), gamma: float = 0.2
) -> Schedule:
    """Multiply by `gamma` at each milestone.

    Args:
        total_steps: T.
        warmup_steps: W.
        milestones: Fractions of the steps after warm-up, in (0, 1); the defaults, with gamma 0.2, are those
            widely used for wide residual networks (60, 120, 160 of 200 epochs; Zagoruyko and Komodakis, 2016).
        gamma: Factor at each milestone.
    """
    return _warmed_up(
        lambda done: gamma ** sum(done >= milestone for milestone in milestones), total_steps, warmup_steps
    )


def build_lr(config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> Schedule:
    """Return the factor of the initial learning rate by step."""
    warmup_steps = _warmup_steps(config.warmup_epochs, "schedule.warmup_epochs", total_steps, steps_per_epoch)
    schedule: Schedule = instantiate(config, "schedule", total_steps=total_steps, warmup_steps=warmup_steps)
    return schedule


def build_rho(config: OptimizerConfig, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the radius of the perturbation by step; 0 for the base optimizer alone."""
    if not isinstance(config, SamConfig) or config.rho == 0:
        return lambda _: 0.0
    rho, name, final = config.rho, "optimizer.rho_warmup_epochs", config.rho_final
    warmup = {
        "total_steps": total_steps,
        "warmup_steps": _warmup_steps(config.rho_warmup_epochs, name, total_steps, steps_per_epoch),
    }
    if config.rho_schedule == "constant":
        factor = constant(**warmup)
    else:
        factor = {"linear": linear, "cosine": cosine}[config.rho_schedule](**warmup, final_factor=final)
    return lambda step: rho * factor(step)


def _warmup_steps(epochs: float, key: str, total_steps: int, steps_per_epoch: int) -> int:
    """Return the steps of a warm-up, which must end before the training does."""
    steps = round(epochs * steps_per_epoch)
    if steps >= total_steps:
        raise InputError(f"{key}={epochs:g} is {steps} steps, the whole training is {total_steps}\n  use a shorter one")
    return steps
