"""Weights & Biases: the package wandb, which stores a run in the folder ``wandb`` of the run folder.

Its own environment variables configure it: WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY. Nothing is sent unless
WANDB_MODE=online; ``wandb sync RUN/wandb/offline-run-*`` sends a stored run later.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import wandb
from torch import Tensor

from sam_runner.training.metrics_logger import MetricsLogger


class WandbLogger(MetricsLogger):
    """Logs metrics, pictures, settings and final metrics to a run of Weights & Biases.

    Args:
        folder: The run folder.
        run_id: Id of the run that is continued, None for a new one. Rows that it has already are ignored by wandb.
    """

    name = "wandb"

    def __init__(self, folder: Path, run_id: str | None) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sam_runner"),
            group=folder.resolve().parent.name,
            name=folder.name,
            dir=str(folder),
            id=run_id,
            resume="allow" if run_id else None,
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log metrics and the epoch."""
        self._run.log({"epoch": epoch, **values}, step=step)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log measurements."""
        self._run.log(dict(values), step=step)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture: (3, H, W), uint8 in [0, 255] or float in [0, 1]."""
        pixels = picture if not picture.is_floating_point() else (picture * 255).round().byte()
        self._run.log({tag: wandb.Image(pixels.permute(1, 2, 0).cpu().numpy())}, step=step)

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """Store facts in the configuration of the run."""
        self._run.config.update({tag: dict(facts)}, allow_val_change=True)

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:  # noqa: ARG002 - of the interface
        """Store the settings in the configuration of the run, the final metrics in its summary."""
        self._run.config.update(dict(settings), allow_val_change=True)
        self._run.summary.update(dict(final))

    def flush(self) -> str:
        """Return the id of the run; wandb writes by itself."""
        return str(self._run.id)

    def close(self) -> None:
        """End the run of wandb."""
        self._run.finish()
