"""Compose a configuration with Hydra and return it as plain values.

Hydra merges the files of conf/, the user's own files and the command line. `load_experiment` checks types, ranges and
rules afterwards, so Hydra gets only the names and defaults of the settings.
"""

import os
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_runner.config.experiment import GROUPS, ExperimentConfig, load_experiment, settings_classes
from sam_runner.config.keys import REQUIRED
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF

SCHEMA_GROUP = "hydra/settings"  # below Hydra's own group, so that shell completion does not offer it


def register_settings() -> None:
    """Store the names and defaults of all settings where Hydra finds them, as ``hydra/settings/...``."""
    store = ConfigStore.instance()
    for path, found in settings_classes().items():
        group, _, name = f"{SCHEMA_GROUP}/{path}".rpartition("/")
        store.store(group=group, name=name, node=default_values(found), package="_global_" if path == "root" else None)


def default_values(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults of a settings class as plain types, without the groups that have options."""
    values: dict[str, Any] = {}
    for entry in fields(kind):
        if "key" in entry.metadata:
            values[entry.name] = list(entry.default) if isinstance(entry.default, tuple) else entry.default
        elif entry.default_factory is not MISSING and entry.name not in {*GROUPS, "base", "own_arguments"}:
            made = entry.default_factory()
            if is_dataclass(made):
                values[entry.name] = default_values(type(made))
    return values


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain, resolved values, without Hydra's own settings.

    Raises:
        InputError: Where an interpolation cannot be resolved, or a group has no option.
    """
    for group in GROUPS:
        node = OmegaConf.select(config, group, throw_on_missing=False)
        if not isinstance(node, DictConfig):
            value = "null" if node is None else node
            raise InputError(
                f"{group}={value} is no option of a group\n  choose one with {group.replace('.', '/')}=NAME"
            )
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    own._set_parent(None)
    try:
        container = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        lines = str(error).splitlines()
        raise InputError(f"{error.full_key or 'a setting'} cannot be resolved: {lines[0]}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def compose_settings(
    overrides: Sequence[str], *, return_hydra_config: bool = False, config_dir: str | None = None
) -> DictConfig:
    """Compose the configuration of a single run as the command line does.

    Args:
        overrides: ``key=value`` and ``group=option``.
        return_hydra_config: Whether the result holds Hydra's own settings under ``hydra``.
        config_dir: Folder of the user's own groups and options.
    """
    register_settings()
    GlobalHydra.instance().clear()
    words = list(overrides)
    if config_dir is not None:
        words.append(f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", words, return_hydra_config=return_hydra_config)


def compose_experiment(overrides: Sequence[str]) -> ExperimentConfig:
    """Compose and validate the settings of a single run.

    Raises:
        InputError: For the first mistake.
    """
    return load_experiment(plain_settings(compose_settings(overrides)), overrides)


def compose_example(overrides: Sequence[str]) -> ExperimentConfig:
    """Compose settings that are not run, with "-" in place of each required value that is not given."""
    return load_experiment(_fill_required(plain_settings(compose_settings(overrides))))


def _fill_required(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _fill_required(entry) for name, entry in value.items()}
    return "-" if value == REQUIRED else value
