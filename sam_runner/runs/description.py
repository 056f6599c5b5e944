"""Describe a run for TensorBoard: the settings that the user chose, and a table of facts."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_runner.config.experiment import GROUPS, ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.runs.dry_run import describe_data, describe_method
from sam_runner.runs.environment import format_command, read_command, read_environment
from sam_runner.training.state import Run


def chosen_settings(config: ExperimentConfig, overrides: Sequence[str]) -> dict[str, bool | float | str]:
    """Return the settings that the user typed, by name, without those that change no numbers, such as `run_dir`.

    An option of a group has its name as the value, e.g. ``optimizer: sam``. With ``optimizer=sgd`` rho is 0.

    Args:
        config: The settings of the run.
        overrides: Settings as the user typed them, ``key=value`` and ``group=option``.
    """
    values: dict[str, Any] = config.flat()
    facts = {name: entry for name, entry, _ in walk(config)}
    chosen: dict[str, bool | float | str] = {}
    for word in overrides:
        key, _, text = word.lstrip("+~").partition("=")
        entry = facts.get(key)
        if entry is not None and (not entry.changes_run or entry.path or not (entry.in_reports or entry.alias)):
            continue
        if entry is None or key in GROUPS:
            chosen[key] = text
            continue
        value = values.get(entry.alias or key, 0.0 if key == "rho" else None)
        chosen[key] = value if isinstance(value, bool | int | float) else str(value)
    return chosen


def swept_settings(command: Sequence[str]) -> set[str]:
    """Return the names of the settings that have several values in a command line with ``-m``."""
    if not {"-m", "--multirun"} & {*command}:
        return set()
    words = (word.lstrip("+").partition("=") for word in command)
    return {key for key, _, values in words if "," in values or "range(" in values}


def describe_facts(run: Run, config: ExperimentConfig, folder: Path, overrides: Sequence[str]) -> dict[str, str]:
    """Return facts about a run by name: command, settings, source, data, network, optimizer, hardware and folder.

    Args:
        run: The run.
        config: Its settings.
        folder: The run folder, with environment.json.
        overrides: Settings as the user typed them.
    """
    environment = read_environment(folder)
    commit = environment.get("git_commit") or "not a git checkout"
    changes = ", with uncommitted changes" if environment.get("git_changes") else ""
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return {
        "command": format_command(environment.get("command") or read_command()),
        "settings": shlex.join(overrides),
        "commit": f"{commit}{changes}",
        "data": f"{config.data.target}: {describe_data(run)}",
        "network": f"{config.model.target}: {num_parameters:,} parameters",
        "optimizer": f"{describe_method(config)}{config.optimizer.base.target}",
        "hardware": f"{environment.get('processor')}, {environment.get('device')}",
        "versions": ", ".join(f"{name} {number}" for name, number in environment.get("packages", {}).items() if number),
        "folder": str(folder.resolve()),
    }
