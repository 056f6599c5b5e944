"""The loggers of a run, by the names in the setting ``logger``; metrics.jsonl is always written."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_runner.runs.logging.csv_table import CsvLogger
from sam_runner.runs.logging.jsonl import JsonlLogger
from sam_runner.training.metrics_logger import MetricsLogger, MetricsLoggers
from sam_runner.utils.errors import first_line

log = logging.getLogger("sam_runner")


def open_loggers(names: Sequence[str], folder: Path, start_step: int, states: Mapping[str, Any]) -> MetricsLoggers:
    """Open the loggers of a run; a logger that cannot be opened is left out with a warning.

    Args:
        names: Value of the setting ``logger``.
        folder: The run folder.
        start_step: Number of steps that are done.
        states: States of the loggers in the checkpoint that the run continues from, by name.
    """
    loggers: list[MetricsLogger] = [JsonlLogger(folder, states.get("jsonl", 0))]
    for name in dict.fromkeys(names):
        try:
            loggers.append(_open(name, folder, start_step, states.get(name)))
        except Exception as error:  # of another package
            log.warning("logger=%s cannot be opened, the run goes on without it: %s", name, first_line(error))
    return MetricsLoggers(loggers)


def _open(name: str, folder: Path, start_step: int, state: Any) -> MetricsLogger:
    # Packages are imported where they are used, because that takes seconds.
    if name == "csv":
        return CsvLogger(folder)
    if name == "wandb":
        from sam_runner.runs.logging.wandb_run import WandbLogger

        return WandbLogger(folder, state)
    if name == "mlflow":
        from sam_runner.runs.logging.mlflow_run import MlflowLogger

        return MlflowLogger(folder, state)
    from sam_runner.runs.logging.tensorboard import TensorboardLogger

    return TensorboardLogger(folder, start_step)
