"""Settings in a file of the user, ``config=mine.yaml``: one line for each word of a command line."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from sam_runner.config.experiment import GROUPS
from sam_runner.config.help import list_options
from sam_runner.config.hydra.own_options import OPTIONS
from sam_runner.config.hydra.saved_config import store_saved_config
from sam_runner.config.validation import describe_missing_option
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF


def store_config_file(file: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Store the settings of a file in Hydra's ConfigStore: of a run, or of a file of the user.

    Args:
        file: Value of ``config=``: a run folder, its config.yaml, or a file of the user.
        overrides: Overrides that the user typed.

    Returns:
        The name of Hydra's primary configuration, and the overrides with the choice of the user's file.

    Raises:
        InputError: If the file cannot be used.
    """
    path = Path(os.path.expanduser(file))
    if os.path.isdir(path):  # unlike Path.is_dir it answers for any name, also one that is too long
        return store_saved_config(file, overrides), list(overrides)
    if not os.path.isfile(path):
        raise InputError(
            f"config={file[:200]} is neither a file nor a run folder\n  give config=FILE.yaml or config=RUN"
        )
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise InputError(
            f"config={file[:200]} cannot be read: {error.strerror}\n  give config=FILE.yaml or config=RUN"
        ) from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a configuration\n  write one line for each setting: key: value")
    if all(isinstance(settings.get(group), dict) for group in GROUPS if "." not in group):
        return store_saved_config(file, overrides), list(overrides)
    name = os.path.relpath(path) if path.is_absolute() else str(path)  # Hydra looks it up by this name
    group, _, option = f"config/{name}".rpartition("/")
    node = _compose_node({str(key): value for key, value in settings.items()})
    ConfigStore.instance().store(group=group, name=option, node=node, package="_global_")
    word = name if re.fullmatch(r"[\w./-]+", name) else "'" + name.replace("'", "\\'") + "'"
    return "config", [f"config={word}", *overrides]


def _compose_node(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file in Hydra's form: options in the defaults list, keys of groups nested."""
    node: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    for key, value in settings.items():
        group = key.replace(".", "/")
        if group in list_options(CONF) and not isinstance(value, dict) and value is not None:
            choices[group] = _require_name(group, value)
        elif key != "defaults":
            _set(node, key.split("."), value)
    defaults = list(settings.get("defaults") or ["_self_"])
    listed = {
        str(name).removeprefix("override ").strip(" /"): value
        for entry in defaults
        if isinstance(entry, dict)
        for name, value in entry.items()
    }
    for group, value in listed.items():
        _require_name(group, value)
    for group, option in OPTIONS.items():
        own, _, name = option.partition("=")
        if own not in {*choices, *listed} and "_target_" in _get(node, group.split(".")):
            choices[own] = name
    node["defaults"] = [*defaults, *({f"override /{group}": option} for group, option in choices.items())]
    return node


def _require_name(group: str, value: Any) -> Any:
    """Return the option of a group, which YAML may have read as a number or as true or false.

    Raises:
        InputError: If it is neither a name nor a list of names.
    """
    if group in list_options(CONF) and not isinstance(value, str | list | None):
        raise InputError(describe_missing_option(group.replace("/", "."), value))
    return value


def _set(node: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set the value at a dotted key of nested dictionaries; a dictionary is merged with the one that is there."""
    below: Any = node
    for part in parts[:-1]:
        below = below.setdefault(part, {}) if isinstance(below, dict) else None
    known = below.get(parts[-1]) if isinstance(below, dict) else None
    if isinstance(known, dict) and isinstance(value, dict):
        for name, entry in value.items():
            _set(known, [str(name)], entry)
    elif isinstance(below, dict) and parts[-1] not in below:
        below[parts[-1]] = value
    else:
        raise InputError(f"{'.'.join(parts)} is set twice in the file\n  write each key once")


def _get(node: Any, parts: Sequence[str]) -> Mapping[str, Any]:
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}
