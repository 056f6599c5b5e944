"""Rules between settings: which exclude each other, need each other, or have no effect together."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sam_runner.config.rules import command_line, data, method, processes, training

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig

RULES: tuple[Callable[["ExperimentConfig", set[str]], None], ...] = (
    processes.check_processes,
    training.check_batch_parts,
    training.check_aliases,
    training.check_warmup,
    method.check_radius,
    method.check_momentum,
    method.check_recording,
    method.check_ascent,
    method.check_random_direction,
    training.check_telemetry,
    training.check_device,
    method.check_betas,
    data.check_image_files,
    data.check_normalisation,
    data.check_download,
    data.check_held_out_labels,
    training.check_selection_metric,
    data.check_augment,
    processes.check_single_process,
)


def check_rules(config: "ExperimentConfig", typed: set[str], *, multirun: bool) -> None:
    """Raise InputError for the first rule that is broken.

    Args:
        config: Settings of the right types and ranges.
        typed: Dotted names of the settings that the user typed.
        multirun: Whether the run is a job of a sweep.
    """
    for rule in RULES:
        rule(config, typed)
    command_line.check_command_line(config, typed, multirun)
