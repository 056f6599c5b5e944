"""From settings to functions of the step: the learning rate and rho."""

from collections.abc import Callable, Mapping
from typing import Any

from sam_runner.config.instantiate import construct
from sam_runner.training import schedules
from sam_runner.utils.errors import InputError

Settings = Mapping[str, Any]


def build_lr(settings: Settings, total_steps: int, steps_per_epoch: int) -> schedules.Schedule:
    """Factor of the initial learning rate by step."""
    node = dict(settings["schedule"])
    warmup_steps = _warmup_steps(node.pop("warmup_epochs", 0.0), "schedule.warmup_epochs", total_steps, steps_per_epoch)
    schedule: schedules.Schedule = construct(node, "schedule", total_steps=total_steps, warmup_steps=warmup_steps)
    return schedule


def _warmup_steps(epochs: float, key: str, total_steps: int, steps_per_epoch: int) -> int:
    """Steps of a warm-up, which must end before the training does."""
    steps = round(epochs * steps_per_epoch)
    if steps >= total_steps:
        raise InputError(f"{key}={epochs:g} is {steps} steps, the whole training is {total_steps}\n  use a shorter one")
    return steps


def build_rho(settings: Settings, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Radius by step; 0 for plain training."""
    options = settings["optimizer"]
    rho = options.get("rho", 0.0)
    if rho == 0:
        return lambda _: 0.0
    final_factor = {} if options["rho_schedule"] == "constant" else {"final_factor": options["rho_final"]}
    warmup_epochs = options["rho_warmup_epochs"]
    warmup_steps = _warmup_steps(warmup_epochs, "optimizer.rho_warmup_epochs", total_steps, steps_per_epoch)
    kinds: dict[str, Callable[..., schedules.Schedule]] = {
        "constant": schedules.constant, "linear": schedules.linear, "cosine": schedules.cosine,
    }  # fmt: skip
    factor = kinds[options["rho_schedule"]](total_steps=total_steps, warmup_steps=warmup_steps, **final_factor)
    return lambda step: rho * factor(step)
