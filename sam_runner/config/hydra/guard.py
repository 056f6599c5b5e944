"""Checks of Hydra's own settings: `check` refuses values that could run code or create folders.

A configuration file can contain these settings, and Hydra applies them before a job starts. Callbacks and logging
handlers are calls of functions, ``job.env_set`` could extend the list of trusted modules, and Hydra would create
folders before the settings of the run are checked. Every composed configuration is checked here.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf

from sam_runner.config.help import list_options
from sam_runner.config.hydra.launchers import COMPUTED, JOBS_FOLDER, STORAGE, is_ray, is_search, refuse_joblib
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import CONF

FIXED: dict[str, tuple[Any, ...]] = {  # key: accepted values
    "callbacks": (None, {}),
    "job.env_set": (None, {}),
    "job.chdir": (None, False),
    "output_subdir": (None,),
    "run.dir": (".",),
    "sweep.subdir": (".",),
    "job_logging": ({"version": 1, "root": None, "disable_existing_loggers": False},),
    "hydra_logging": ({"version": 1, "root": None, "disable_existing_loggers": False},),
    "launcher.submitit_folder": (None, JOBS_FOLDER),
    "launcher.setup": (None,),  # shell commands; not needed, since a batch script inherits the environment of sam-train
    "launcher.additional_parameters": (None, {}),
    "sweeper.storage": (None, STORAGE),
    "sweeper.custom_search_space": (None,),  # name of a function
}
RAY: dict[str, tuple[Any, ...]] = {  # key: accepted values with Ray, which must not connect to other machines
    "launcher.ray.init.address": ("local",),
    "launcher.ray.init.include_dashboard": (False,),
}
COMMANDS = "hydra_plugins.hydra_ray_launcher.ray_aws_launcher."
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")
KEYS = {  # accepted keys of the plugins; submitit passes other keys to sbatch and srun, where some name programs
    "launcher": {
        "_target_", "submitit_folder", "timeout_min", "cpus_per_task", "gpus_per_node",
        "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout", "partition", "qos", "comment", "constraint",
        "exclude", "gres", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "account", "signal_delay_s",
        "max_num_timeout", "additional_parameters", "array_parallelism", "setup", "ray",
    },
    "launcher.ray": {"init", "remote"},
    "launcher.ray.init": {
        "address", "num_cpus", "num_gpus", "include_dashboard", "logging_level", "log_to_driver", "object_store_memory",
    },
    "launcher.ray.remote": {"num_cpus", "num_gpus", "memory", "max_retries"},
    "sweeper": {
        "_target_", "max_batch_size", "params", "sampler", "direction", "storage", "study_name", "n_trials", "n_jobs",
        "max_failure_rate", "search_space", "custom_search_space",
    },
}  # fmt: skip
OF_WHOLE_SWEEP = (
    "dry_run",
    "sweep.batch_seeds",
    "sweep.jobs",
    "sweep.on_error",
    "sweep.verbose",
    "sweep_name",
)  # settings that no job has alone
_AFTER_CHECK: list[Callable[[DictConfig], None]] = []


def install(after_check: Callable[[DictConfig], None] = lambda _: None) -> None:
    """Check every configuration that Hydra's own main composes in this process, also for each job of a sweep.

    Hydra applies its settings before the job starts, so they must be checked when the configuration is loaded. Hydra
    has no public hook there. Therefore the private method `ConfigLoaderImpl.load_configuration` is replaced.

    Args:
        after_check: Function that is called with each accepted configuration.
    """
    _AFTER_CHECK[:] = [after_check]
    original = ConfigLoaderImpl.load_configuration
    if getattr(original, "checked", False):
        return

    @wraps(original)
    def load_configuration(self: ConfigLoaderImpl, *arguments: Any, **keywords: Any) -> DictConfig:
        config = original(self, *arguments, **keywords)
        check(config)
        _AFTER_CHECK[0](config)
        return config

    load_configuration.checked = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]


def require_values(overrides: Sequence[str]) -> None:
    """Raise InputError for a swept setting without values, for which Hydra would run no job."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_discrete_sweep():
            continue
        if isinstance(override.value(), Glob):  # a pattern for the options of a group, which Hydra looks up later
            empty = override.key_or_group not in list_options(CONF)
        else:
            empty = not any(True for _ in override.sweep_iterator())
        if empty:
            raise InputError(
                f"{override.input_line} gives no value: the sweep is empty\n  give values, for example key=1,2"
            )


def require_single_values(overrides: Sequence[str]) -> None:
    """Raise InputError for several values of a setting that holds for the whole sweep."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        if name in OF_WHOLE_SWEEP and override.is_sweep_override():
            raise InputError(
                f"{override.input_line} gives several values, but this setting applies to the whole sweep\n"
                "  give one value"
            )


def check(config: DictConfig) -> None:
    """Refuse settings of Hydra that could run code or create folders, and a `sweep_name` that is not a folder name.

    Args:
        config: A composed configuration with Hydra's own settings.

    Raises:
        InputError: If a value is not accepted; the message names its key.
    """
    hydra = OmegaConf.to_container(config.hydra, resolve=False)
    refuse_joblib(config.hydra)
    for key, accepted in (FIXED | (RAY if is_ray(config.hydra) else {})).items():
        if _get_value(hydra, key) not in accepted:
            raise InputError(
                f"hydra.{key} cannot be changed\n  remove it from the command line and the configuration files"
            )
    for plugin, keys in KEYS.items():
        node = _get_value(hydra, plugin)
        for target in _list_targets(node):
            if not target.startswith(PLUGINS):
                raise InputError(f"hydra.{plugin} names {target}, which is not a plugin of Hydra\n  leave it out")
            if target.startswith(COMMANDS):
                raise InputError("hydra/launcher=ray_aws is refused: it can run commands\n  use hydra/launcher=ray")
        for key in node if isinstance(node, dict) else ():
            if key not in keys:
                raise InputError(f"hydra.{plugin}.{key} is not accepted\n  accepted: {', '.join(sorted(keys))}")
        for text in _list_texts(node):
            if re.search(r"[\x00-\x1f\x7f]", text):  # a new line of a batch script would be a command
                raise InputError(f"hydra.{plugin} contains a text with a line break\n  write the text in one line")
            if "${" in text and text not in COMPUTED:  # it can call a function: ${oc.create:{_target_: ...}}
                raise InputError(f"hydra.{plugin} contains the interpolation {text}\n  write the value itself")
    params = _get_value(hydra, "sweeper.params")
    if isinstance(params, dict):
        words = [f"{key}={value}" for key, value in params.items() if isinstance(value, str)]
        require_values(words)
        require_single_values(words)
    name = OmegaConf.select(config, "sweep_name", default="unnamed")
    if not re.fullmatch(r"[\w.=+-][\w.=+ -]{0,99}", str(name), re.ASCII) or str(name).strip(".") == "":
        raise InputError(f"sweep_name={name} is not a folder name\n  accepted: up to 100 letters, digits and ._=+-")


def check_search(config: DictConfig) -> None:
    """Refuse a search without held-out images, which would choose settings by the test set, and one for the worst.

    It is apart from `check`, which also sees configurations that lack the values which a user has typed.

    Args:
        config: The complete configuration of a sweep or of a job, with Hydra's own settings.

    Raises:
        InputError: If the search is refused.
    """
    if not is_search(config.hydra):
        return
    if not OmegaConf.select(config, "data.val_fraction", default=0):
        raise InputError(
            "hydra/sweeper=optuna needs data.val_fraction: it compares trials by a metric of these held-out images\n"
            "  add data.val_fraction=0.1"
        )
    direction = OmegaConf.select(config, "hydra.sweeper.direction", default="maximize")
    if str(direction) != "maximize":
        raise InputError(
            f"hydra.sweeper.direction={direction} is not accepted: a trial has a larger objective the better it is\n"
            "  leave it out; early_stopping.metric=validation/nll searches the lowest negative log-likelihood"
        )


def refuse_sweep_settings(words: Sequence[str]) -> None:
    """Raise InputError for overrides that describe a sweep, on a command line without -m."""
    for word in words:
        name = re.split(r"[=@]", word.lstrip("+~"))[0]
        if re.match(r"hydra[./](sweep|launcher)", name):
            raise InputError(f"{name} has no effect without -m\n  for a sweep: {_sweep_command(words)}")


def refuse_sweep_files(config: DictConfig, words: Sequence[str]) -> None:
    """Refuse files that describe a sweep if -m is missing: Hydra would run a single job without a message.

    Args:
        config: The composed configuration with Hydra's own settings.
        words: Overrides that the user typed.

    Raises:
        InputError: With the command that runs the sweep.
    """
    if any(word.lstrip("+").startswith("search=") for word in words):  # refused by a rule with its own message
        return
    found, choices = [], config.hydra.runtime.choices
    params = OmegaConf.select(config, "hydra.sweeper.params")
    if params:
        found.append(f"hold a sweep over {', '.join(map(str, params))}")
    found += [f"choose {name}" for name in ("hydra/launcher", "hydra/sweeper") if choices.get(name) != "basic"]
    if str(config.hydra.mode).endswith("MULTIRUN"):
        found.append("set hydra.mode")
    if found:
        raise InputError(f"the chosen files {found[0]}, and -m is missing\n  for the sweep: {_sweep_command(words)}")


def _sweep_command(words: Sequence[str]) -> str:
    return f"sam-train -m {shlex.join(word for word in words if not word.startswith('run_dir='))}"[:300]


def _get_value(node: Any, key: str) -> Any:
    """Return the value at a dotted key of nested dictionaries, or None if there is none."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _list_texts(node: Any) -> list[str]:
    """Return all strings in a tree of dictionaries and lists, including keys."""
    if isinstance(node, dict):
        return [text for key, value in node.items() for text in [*_list_texts(key), *_list_texts(value)]]
    if isinstance(node, list):
        return [text for value in node for text in _list_texts(value)]
    return [node] if isinstance(node, str) else []


def _list_targets(node: Any) -> list[str]:
    """Return all values of ``_target_`` in a tree of dictionaries and lists."""
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in _list_targets(value)]
    return [target for value in node for target in _list_targets(value)] if isinstance(node, list) else []
