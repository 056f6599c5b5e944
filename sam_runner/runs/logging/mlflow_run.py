"""MLflow: the package mlflow, by its client, which has no state of the process.

Its own environment variables configure it: MLFLOW_TRACKING_URI (without it, a store in the working folder) and
MLFLOW_EXPERIMENT_NAME.
"""

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from sam_runner.training.metrics_logger import MetricsLogger

MAX_TEXT = 5000  # characters of a tag and of a parameter


class MlflowLogger(MetricsLogger):
    """Logs metrics, settings and facts to a run of MLflow. It has no pictures.

    Args:
        folder: The run folder.
        run_id: Id of the run that is continued, None for a new one.
    """

    name = "mlflow"

    def __init__(self, folder: Path, run_id: str | None) -> None:
        self._client = MlflowClient()
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sam_runner")
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            run_id = self._client.create_run(number, run_name=folder.name).info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = str(run_id)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log metrics and the epoch."""
        self.timing(step, {"epoch": float(epoch), **values})

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, metrics=[Metric(tag, value, now, step) for tag, value in values.items()])

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """Store facts as tags."""
        for name, text in facts.items():
            self._client.set_tag(self._run_id, f"{tag}.{name}", str(text)[:MAX_TEXT])

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:  # noqa: ARG002 - of the interface
        """Store the settings as parameters, the final metrics as metrics ``final/...``."""
        params = [Param(name, str(value)[:MAX_TEXT]) for name, value in settings.items()]
        now = int(time.time() * 1000)
        metrics = [Metric(f"final/{tag}", value, now, 0) for tag, value in final.items()]
        self._client.log_batch(self._run_id, params=params, metrics=metrics)

    def flush(self) -> str:
        """Return the id of the run; MLflow writes each call at once."""
        return self._run_id

    def close(self) -> None:
        """End the run of MLflow."""
        self._client.set_terminated(self._run_id)
