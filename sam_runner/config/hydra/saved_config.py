"""Run the settings of a finished run again: its config.yaml as Hydra's primary configuration, in place of conf/."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from sam_runner.config.allowed_targets import UntrustedError
from sam_runner.config.experiment import load_experiment
from sam_runner.config.help import list_options
from sam_runner.config.keys import walk
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF
from sam_runner.utils.yaml import read_yaml

NAME = "saved_config"  # of the configuration in Hydra's store


def store_saved_config(file: str, overrides: Sequence[str]) -> str:
    """Store the settings of a run in Hydra's ConfigStore, and return the name of the stored configuration.

    Settings with a `Key.alias` are linked again, so that ``rho`` also changes ``optimizer.rho``. run_dir, sweep_name,
    world_size and dry_run are not taken from the file.

    Args:
        file: A config.yaml, or the run folder that holds it.
        overrides: Overrides that the user typed.

    Raises:
        InputError: If the file cannot be used, or an override chooses an option of a group.
    """
    path = Path(os.path.expanduser(file))
    path = path / "config.yaml" if os.path.isdir(path) else path
    if not file or not os.path.isfile(path):
        reason = f"{path} does not exist" if file else "it has no value"
        raise InputError(
            f"config={file} does not name a run: {reason}\n"
            "  give the folder of a run or its config.yaml, for example config=outputs/runs/NAME"
        )
    for word in overrides:
        group = word.lstrip("+~").partition("=")[0]
        if group in list_options(CONF):
            raise InputError(
                f"{word} chooses an option, and {file} holds the settings of all groups\n"
                "  change single settings by their keys, such as lr=0.1, or leave config= out"
            )
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a configuration\n  give config=RUN/config.yaml with the folder of a run")
    try:
        config = load_experiment({**settings, "dry_run": False})
    except UntrustedError:
        raise
    except InputError as error:
        raise InputError(f"{path} does not fit this version: {error}") from error
    base, node, values = read_yaml(CONF / "config.yaml"), _escape(config.to_dict()), config.flat()
    for name, facts, _ in walk(config):
        if facts.alias in values:
            node[name] = values[facts.alias]
            _below(node, facts.alias)[facts.alias.rpartition(".")[2]] = f"${{{name}}}"
    node |= {name: base[name] for name in ("world_size", "sweep_name", "hydra")} | {"run_dir": None}
    node["defaults"] = [
        "_self_",
        *(entry for entry in base["defaults"] if isinstance(entry, dict) and "override" in next(iter(entry))),
    ]
    ConfigStore.instance().store(name=NAME, node=node)
    return NAME


def _below(node: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the group of a dotted key."""
    for part in key.split(".")[:-1]:
        node = node[part]
    return node


def _escape(value: Any) -> Any:
    """Escape ``${`` in all texts: the file holds resolved values, so it is no interpolation."""
    if isinstance(value, dict):
        return {name: _escape(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_escape(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
