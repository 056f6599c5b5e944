"""Train with Sharpness-Aware Minimization (SAM), from the command line or from Python.

The names in `__all__` are imported when they are first used, so ``import sam_runner`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_runner.api import RunResult, load_results, load_run, train
    from sam_runner.config.experiment import ExperimentConfig, load_experiment
    from sam_runner.data.own_data import from_dataset
    from sam_runner.sam.batch import Batch
    from sam_runner.sam.objective import Objective
    from sam_runner.sam.perturbation import epsilon
    from sam_runner.sam.step import SamStep

__version__ = "0.2.0"
__all__ = [
    "Batch",
    "ExperimentConfig",
    "Objective",
    "RunResult",
    "SamStep",
    "epsilon",
    "from_dataset",
    "load_experiment",
    "load_results",
    "load_run",
    "train",
]
_MODULES = {
    "Batch": "sam_runner.sam.batch",
    "ExperimentConfig": "sam_runner.config.experiment",
    "Objective": "sam_runner.sam.objective",
    "RunResult": "sam_runner.api",
    "SamStep": "sam_runner.sam.step",
    "epsilon": "sam_runner.sam.perturbation",
    "from_dataset": "sam_runner.data.own_data",
    "load_experiment": "sam_runner.config.experiment",
    "load_results": "sam_runner.api",
    "load_run": "sam_runner.api",
    "train": "sam_runner.api",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
