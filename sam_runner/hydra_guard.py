"""Hydra's own settings, which a configuration file can carry too, are held to what this program needs.

Hydra acts on them before any job starts: callbacks and logging handlers are calls, ``job.env_set`` could extend the
list of trusted modules, and folders would be made before anything is checked. Every composed configuration passes here.
"""

import re
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from sam_runner.errors import InputError

FIXED: dict[str, tuple[Any, ...]] = {  # key: what it may be
    "callbacks": (None, {}),
    "job.env_set": (None, {}),
    "job.chdir": (None, False),
    "output_subdir": (None,),
    "run.dir": (".",),
    "sweep.subdir": (".",),
    "job_logging": ({"version": 1, "root": None, "disable_existing_loggers": False},),
    "hydra_logging": ({"version": 1, "root": None, "disable_existing_loggers": False},),
}
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")


def install() -> None:
    """Check every configuration that Hydra composes in this process, also that of each cell of a sweep."""
    original = ConfigLoaderImpl.load_configuration
    if getattr(original, "checked", False):
        return

    def load_configuration(self: ConfigLoaderImpl, *arguments: Any, **keywords: Any) -> DictConfig:
        config = original(self, *arguments, **keywords)
        check(config)
        return config

    load_configuration.checked = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]


def check(config: DictConfig) -> None:
    """Refuse settings of Hydra that would run code or make folders, and a sweep_name that is no folder's name.

    Raises:
        InputError: Naming the key.
    """
    hydra = OmegaConf.to_container(config.hydra, resolve=False)
    for key, accepted in FIXED.items():
        value: Any = hydra
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value not in accepted:
            raise InputError(f"hydra.{key} cannot be changed here\n  leave it out, on the command line and in files")
    for plugin in ("launcher", "sweeper"):
        for target in _targets(hydra.get(plugin) if isinstance(hydra, dict) else None):
            if not target.startswith(PLUGINS):
                raise InputError(f"hydra.{plugin} names {target}, which is no plugin of Hydra")
    name = OmegaConf.select(config, "sweep_name", default="unnamed")
    if not re.fullmatch(r"[\w.=+-][\w.=+ -]{0,99}", str(name), re.ASCII) or str(name).strip(".") == "":
        raise InputError(f"sweep_name={name} is no name of a folder\n  accepted: up to 100 letters, digits and ._=+-")


def _targets(node: Any) -> list[str]:
    """All ``_target_`` values below a node."""
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    return [target for value in node for target in _targets(value)] if isinstance(node, list) else []
