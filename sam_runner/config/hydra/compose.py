"""Compose a configuration with Hydra and return it as plain values.

Hydra merges the files of conf/, the user's own files and the command line. `load_experiment` checks types, ranges and
rules afterwards, so Hydra gets only the names and defaults of the settings.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sam_runner.config.experiment import GROUPS, OPTIONAL_GROUPS, ExperimentConfig, load_experiment, settings_classes
from sam_runner.config.hydra.messages import describe_interpolation
from sam_runner.config.hydra.own_file import store_config_file
from sam_runner.config.hydra.text_values import quote_text_values
from sam_runner.config.keys import REQUIRED
from sam_runner.config.optimizer import METHODS
from sam_runner.config.validation import describe_missing_option, describe_unknown_key, format_nested, list_names
from sam_runner.utils.errors import InputError, first_line
from sam_runner.utils.files import CONF

SCHEMA_GROUP = "hydra/settings"  # below Hydra's own group, so that shell completion does not offer it


@cache
def register_settings() -> None:
    """Store the names and defaults of all settings in Hydra's ConfigStore, as ``hydra/settings/...``, once per process.

    ``hydra/settings/rho/<method>`` gives the top-level setting rho the default of a method.
    """
    store = ConfigStore.instance()
    for method in METHODS:
        values = default_values(method)
        if "rho" in values:
            store.store(group=f"{SCHEMA_GROUP}/rho", name=values["name"], node={"rho": values["rho"]})
    for path, found in settings_classes().items():
        group, _, name = f"{SCHEMA_GROUP}/{path}".rpartition("/")
        store.store(group=group, name=name, node=default_values(found), package="_global_" if path == "root" else None)


def default_values(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults of a settings class as plain types, without the groups that have options."""
    values: dict[str, Any] = {}
    for entry in fields(kind):
        if "key" in entry.metadata:
            values[entry.name] = list(entry.default) if isinstance(entry.default, tuple) else entry.default
        elif entry.default_factory is not MISSING and entry.name not in {*GROUPS, "base", "around", "own_arguments"}:
            made = entry.default_factory()
            if is_dataclass(made):
                values[entry.name] = default_values(type(made))
    return values


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain, resolved values, without Hydra's own settings.

    Raises:
        InputError: If an interpolation cannot be resolved, or a group has no option.
    """
    for key in config:
        if key != "hydra":
            _require_setting(str(key), config)
    for group in GROUPS:
        node = select_value(config, group)
        if not isinstance(node, DictConfig) and not (node is None and group in OPTIONAL_GROUPS):
            raise InputError(describe_missing_option(group, node))
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    own._set_parent(None)
    try:
        container = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(describe_interpolation(error, str(error.full_key or ""))) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def select_value(config: DictConfig, key: str) -> Any:
    """Return the value at a dotted key, or None; a group is a `DictConfig`.

    Raises:
        InputError: For an interpolation that cannot be resolved.
    """
    try:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        return OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
    except OmegaConfBaseException as error:
        raise InputError(describe_interpolation(error, key)) from error


def _require_setting(key: str, config: DictConfig) -> None:
    """Raise InputError, with the lines to write, for a top-level key (mostly of a user's file) that is no setting."""
    known = {entry.name for entry in fields(ExperimentConfig)}
    if key in known:
        return
    name, colon, value = re.match(r"([^:= ]*)\s*([:=]?)\s*(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    if colon and name in known:
        raise InputError(f"unknown key {key}\n  write a colon and a space: {name}: {value or '...'}")
    node = config._get_node(key)
    value = str(node) if not OmegaConf.is_config(node) else "..."
    if "." in key:
        raise InputError(f"unknown key {key}: in a file, keys of a group are nested\n{format_nested(key, value)}")
    if isinstance(node, DictConfig) and not get_close_matches(key, known, 1):
        raise InputError(
            f"unknown key {key}, with the settings of a file below it\n"
            "  the first line of the file has to be: # @package _global_"
        )
    own = OmegaConf.masked_copy(config, [str(entry) for entry in config if entry not in ("hydra", key)])
    raise InputError(describe_unknown_key(key, [*known, *list_names(OmegaConf.to_container(own))], value))


def typed_overrides(config: Any) -> list[str]:
    """Return the overrides that the user typed, interpolations unresolved, from Hydra's own settings `config`."""
    words: Any = OmegaConf.to_container(config.overrides.task, resolve=False)
    return [str(word) for word in words]


def compose_settings(
    overrides: Sequence[str],
    *,
    return_hydra_config: bool = False,
    config_dir: str | None = None,
    config_file: str | None = None,
) -> DictConfig:
    """Compose the configuration of a single run from arguments ``key=value`` and ``group=option``.

    Args:
        overrides: The arguments.
        return_hydra_config: Include Hydra's own settings under ``hydra``.
        config_dir: Folder of the user's own groups and options.
        config_file: A run's config.yaml in place of conf/, a file of the user's settings, or None.
    """
    register_settings()
    name = "config"
    if config_file is not None:
        name, overrides = store_config_file(config_file, overrides)
    GlobalHydra.instance().clear()
    words = quote_text_values(overrides)
    if config_dir is not None:
        words.append(f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, words, return_hydra_config=return_hydra_config)


def compose_experiment(overrides: Sequence[str], *, config_dir: str | None = None) -> ExperimentConfig:
    """Compose and validate the settings of a single run.

    Args:
        overrides: The arguments.
        config_dir: Folder of the user's own groups and options.

    Raises:
        InputError: For the first invalid setting, or an option that does not exist.
    """
    try:
        settings = plain_settings(compose_settings(overrides, config_dir=config_dir))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise InputError(first_line(error)) from error
    return load_experiment(settings, overrides)


def compose_example(overrides: Sequence[str]) -> ExperimentConfig:
    """Compose settings for display only: "-" replaces required values that are not given."""
    return load_experiment(_fill_required(plain_settings(compose_settings(overrides))))


def _fill_required(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _fill_required(entry) for name, entry in value.items()}
    return "-" if value == REQUIRED else value
