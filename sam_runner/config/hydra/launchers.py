"""Defaults for Hydra's launchers, which run the jobs of a sweep, and for its sweeper Optuna, which chooses them.

The launchers and sweepers are published plugins of Hydra. Their options keep their names and types
(``hydra/launcher=ray``); only the default values are changed here. `sam_runner.config.hydra.guard` refuses keys that
could run a program or create folders.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from omegaconf import DictConfig, OmegaConf

from sam_runner.utils.errors import InputError
from sam_runner.utils.hardware import count_gpus, count_usable_cores

EXTRAS = {  # option: the extra of this package that installs its plugin
    "hydra/launcher/submitit_local": "submitit", "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray", "hydra/sweeper/optuna": "optuna",
}  # fmt: skip
JOBLIB = (
    "hydra/launcher=joblib is not used: jobs run at once without it\n"
    "  leave it out; sweep.jobs=8 sets the number of jobs that run at once"
)
JOBS_FOLDER = "${hydra.sweep.dir}/.submitit/%j"  # the default of the plugin submitit
STORAGE = "sqlite:///${folder:${hydra.sweep.dir}}/optuna.db"
CORES, GPUS, GPU = "${cores:}", "${gpus:}", "${gpu_each:}"
NAMES = ("${hydra.job.name}", "${sweep_name}")
COMPUTED = (JOBS_FOLDER, STORAGE, CORES, GPUS, GPU, *NAMES)  # interpolations that options may contain
DEFAULTS: dict[str, dict[str, Any]] = {  # option: default values that replace the plugin's
    "hydra/launcher/submitit_local": {
        "timeout_min": 7 * 24 * 60,  # in minutes; the plugin's default is one hour
    },
    "hydra/launcher/submitit_slurm": {
        "timeout_min": 12 * 60,  # minutes of one start of a job; an unfinished job is started again
        "gpus_per_node": 1,
        "cpus_per_task": 8,
        "signal_delay_s": 180,  # seconds before the limit, for saving
        "max_num_timeout": 100,  # number of further starts of a job
        "name": "sam-train",
    },
    "hydra/launcher/ray": {
        "ray": {
            "init": {
                "address": "local",  # start Ray for this sweep; the plugin's default joins a running Ray
                "num_cpus": CORES,  # Ray's default also counts cores that this process may not use
                "num_gpus": GPUS,
                "include_dashboard": False,  # the dashboard is a web server that runs submitted code
                "logging_level": 30,  # logging.WARNING
            },
            "remote": {"num_cpus": 1, "num_gpus": GPU},  # resources of one job
        },
    },
    "hydra/sweeper/sampler/tpe": {"seed": 0},
    "hydra/sweeper/optuna": {
        "direction": "maximize",  # a job returns its accuracy on the held-out images, or minus their nll
        "storage": STORAGE,  # a file in the sweep's folder, so that the same command continues the study
        "study_name": NAMES[1],
        "n_trials": 20,  # number of trials per command
        "n_jobs": 1,  # number of trials at once
        "max_failure_rate": 1.0,  # failing trials do not stop the search
        "params": {  # searched settings; the command line or `hydra.sweeper.params` can change them
            "rho": "tag(log, interval(0.01, 0.5))",  # around the paper's grid, section 3.1
            "lr": "tag(log, interval(0.005, 0.5))",
            "optimizer.m": "choice(16, 32, 64, 128)",  # 128 is the whole batch by default
        },
    },
}


RAY = {  # environment variables of Ray; those that the user has set are kept
    "RAY_AUTH_MODE": "token",  # other users of this machine cannot submit jobs
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback interface, so other machines cannot connect
    "RAY_USAGE_STATS_ENABLED": "0",  # send no usage statistics
    "RAY_DEDUP_LOGS": "0",  # print all lines: different jobs print equal lines
    "RAY_COLOR_PREFIX": "0",
}


def register() -> None:
    """Set our defaults in the options of the installed plugins, and register the resolvers that the defaults use."""
    Plugins.instance()  # imports the plugins, which store their options
    store = ConfigStore.instance()
    for path, values in DEFAULTS.items():
        group, _, name = path.rpartition("/")
        with contextlib.suppress(ConfigLoadError):
            found = store.load(f"{path}.yaml")
            store.store(group=group, name=name, node=OmegaConf.merge(found.node, values), provider=found.provider)
    OmegaConf.register_new_resolver("cores", count_usable_cores, replace=True)
    OmegaConf.register_new_resolver("gpus", count_gpus, replace=True)
    OmegaConf.register_new_resolver("gpu_each", lambda: min(1, count_gpus()), replace=True)
    OmegaConf.register_new_resolver("folder", _make_folder, replace=True)


def _make_folder(folder: str) -> str:
    """Create a folder and return its path. Optuna opens its database before Hydra creates the sweep's folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def prepare(hydra: DictConfig) -> None:
    """Set Ray's environment variables before a sweep, and require that a job fits into Ray's resources.

    Other launchers need no preparation.

    Args:
        hydra: Hydra's own settings.

    Raises:
        InputError: If a job needs more cores or GPUs than Ray has. Ray would wait for them forever.
    """
    if not is_ray(hydra):
        return
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    available, needed = hydra.launcher.ray.init, hydra.launcher.ray.remote
    for kind, key in (("cores", "num_cpus"), ("GPUs", "num_gpus")):
        if (needed.get(key) or 0) > (available.get(key) or 0):
            raise InputError(
                f"hydra.launcher.ray.remote.{key}={needed[key]}: "
                f"there are {available.get(key) or 0} {kind} for all jobs together\n"
                f"  use a smaller value, or set hydra.launcher.ray.init.{key} to a larger one"
            )


def refuse_joblib(hydra: DictConfig) -> None:
    """Raise InputError for the launcher of joblib: jobs run at once without it."""
    if str(hydra.launcher._target_).endswith(".JoblibLauncher"):
        raise InputError(JOBLIB)


def is_ray(hydra: DictConfig) -> bool:
    """Return whether Ray runs the jobs of a sweep."""
    return str(hydra.launcher._target_).endswith(".RayLauncher")


def in_subprocesses(hydra: DictConfig) -> bool:
    """Return whether the jobs of a sweep run in other processes."""
    return not str(hydra.launcher._target_).endswith(".BasicLauncher")


def on_this_machine(hydra: DictConfig) -> bool:
    """Return whether the jobs of a sweep run on this machine.

    The sweep then forwards its signals to the jobs. Slurm sends signals to its jobs itself.
    """
    return not str(hydra.launcher._target_).endswith(".SlurmLauncher")


def is_search(hydra: DictConfig) -> bool:
    """Return whether Optuna chooses the jobs, by the results of earlier jobs."""
    return str(hydra.sweeper._target_).endswith(".OptunaSweeper")
