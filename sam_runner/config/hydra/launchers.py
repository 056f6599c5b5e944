"""What runs the cells of a sweep, and what chooses them: Hydra's plugins with our defaults, and nothing of our own.

A plugin's option keeps its name and its types (``hydra/launcher=joblib``); only the defaults here differ. The keys
that would let a file run a program or make folders elsewhere are held fast by `hydra_guard`.
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

EXTRAS = {  # the option: the extra of this package that brings it
    "hydra/launcher/joblib": "joblib", "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit", "hydra/launcher/ray": "ray", "hydra/sweeper/optuna": "optuna",
}  # fmt: skip
JOBS_FOLDER = "${hydra.sweep.dir}/.submitit/%j"  # the plugin's own
STORAGE = "sqlite:///${folder:${hydra.sweep.dir}}/optuna.db"
JOBS, CORES, GPUS, GPU = "${jobs_at_once:}", "${cores:}", "${gpus:}", "${gpu_each:}"
NAMES = ("${hydra.job.name}", "${sweep_name}")
COMPUTED = (JOBS_FOLDER, STORAGE, JOBS, CORES, GPUS, GPU, *NAMES)  # in the plugins' options, theirs and ours
DEFAULTS: dict[str, dict[str, Any]] = {  # our choices
    "hydra/launcher/joblib": {
        "n_jobs": JOBS,  # one a GPU, without any one a core; the plugin's: one a core
    },
    "hydra/launcher/submitit_local": {
        "timeout_min": 7 * 24 * 60,  # the plugin's: an hour
    },
    "hydra/launcher/submitit_slurm": {
        "timeout_min": 12 * 60,  # of one start; what is left goes on in the next
        "gpus_per_node": 1,
        "cpus_per_task": 8,
        "signal_delay_s": 180,  # before the end, to save in
        "max_num_timeout": 100,  # starts after the first
        "name": "sam-train",
    },
    "hydra/launcher/ray": {
        "ray": {
            "init": {
                "address": "local",  # processes of this sweep alone; the plugin's: whatever Ray of the machine it finds
                "num_cpus": CORES,  # Ray's: all of the machine, also those that this process may not use
                "num_gpus": GPUS,
                "include_dashboard": False,  # a web server that runs what it is sent
                "logging_level": 30,  # warnings
            },
            "remote": {"num_cpus": 1, "num_gpus": GPU},  # of a job
        },
    },
    "hydra/sweeper/sampler/tpe": {"seed": 0},
    "hydra/sweeper/optuna": {
        "direction": "maximize",  # the accuracy on the held-out images
        "storage": STORAGE,  # so that the same command goes on
        "study_name": NAMES[1],
        "n_trials": 20,  # of each call
        "n_jobs": 1,  # trials at once; another launcher has to run them
        "max_failure_rate": 1.0,  # a failing trial stops nobody
        "params": {  # what is searched; `hydra.sweeper.params` or the command line says other things
            "rho": "tag(log, interval(0.01, 0.5))",  # around the paper's grid, section 3.1
            "lr": "tag(log, interval(0.005, 0.5))",
            "optimizer.m": "choice(16, 32, 64, 128)",  # 128: the whole batch
        },
    },
}


RAY = {  # of its processes, where the environment says nothing else
    "RAY_AUTH_MODE": "token",  # other people of this machine cannot send it work
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nor other machines: it listens on the loopback interface
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing goes to Ray's makers
    "RAY_DEDUP_LOGS": "0",  # the lines of cells are alike
    "RAY_COLOR_PREFIX": "0",
}


def register() -> None:
    """Put our defaults into the options of those plugins that are installed."""
    Plugins.instance()  # imports them, which stores their options
    store = ConfigStore.instance()
    for path, values in DEFAULTS.items():
        group, _, name = path.rpartition("/")
        with contextlib.suppress(ConfigLoadError):
            found = store.load(f"{path}.yaml")
            store.store(group=group, name=name, node=OmegaConf.merge(found.node, values), provider=found.provider)
    OmegaConf.register_new_resolver("jobs_at_once", _jobs_at_once, replace=True)
    OmegaConf.register_new_resolver("cores", _cores, replace=True)
    OmegaConf.register_new_resolver("gpus", _gpus, replace=True)
    OmegaConf.register_new_resolver("gpu_each", lambda: min(1, _gpus()), replace=True)
    OmegaConf.register_new_resolver("folder", _made, replace=True)


def _jobs_at_once() -> int:
    from sam_runner.utils.hardware import choose_num_parallel_jobs

    return choose_num_parallel_jobs(_gpus(), _cores())


def _cores() -> int:
    from sam_runner.utils.hardware import count_usable_cores

    return count_usable_cores()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _made(folder: str) -> str:
    """The folder, which is there from then on: a database is opened before the sweep makes it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def prepare(hydra: DictConfig) -> None:
    """Before a sweep: what Ray reads from the environment, and that a job fits into what it may use.

    Args:
        hydra: Hydra's own settings.

    Raises:
        InputError: Where a job needs more than there is: Ray would wait for it.
    """
    if not is_ray(hydra):
        return
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    there, needed = hydra.launcher.ray.init, hydra.launcher.ray.remote
    for kind, key in (("cores", "num_cpus"), ("GPUs", "num_gpus")):
        if (needed.get(key) or 0) > (there.get(key) or 0):
            raise InputError(
                f"hydra.launcher.ray.remote.{key}={needed[key]}: there are {there.get(key) or 0} {kind} for all jobs\n"
                f"  give less, or more of them: hydra.launcher.ray.init.{key}"
            )


def is_ray(hydra: DictConfig) -> bool:
    """Whether Ray runs the cells."""
    return str(hydra.launcher._target_).endswith(".RayLauncher")


def in_subprocesses(hydra: DictConfig) -> bool:
    """Whether the cells of a sweep run in other processes.

    Args:
        hydra: Hydra's own settings.
    """
    return not str(hydra.launcher._target_).endswith(".BasicLauncher")


def on_this_machine(hydra: DictConfig) -> bool:
    """Whether they run on this machine, and are told by us that the sweep is to end; Slurm tells its own."""
    return not str(hydra.launcher._target_).endswith(".SlurmLauncher")


def is_search(hydra: DictConfig) -> bool:
    """Whether cells are chosen by how well those before went."""
    return str(hydra.sweeper._target_).endswith(".OptunaSweeper")
