"""Where a run's numbers go: TensorBoard, metrics.jsonl (the same bytes for the same run), timing.jsonl."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Tracker:
    """Appends to a run folder's logs.

    Args:
        folder: The run folder.
        start_step: Steps already done; what an interrupted run logged after them is dropped from TensorBoard.
        metrics_bytes: Length of metrics.jsonl at that point; the rest is cut off.
    """

    def __init__(self, folder: Path, start_step: int = 0, metrics_bytes: int = 0) -> None:
        self._metrics = (folder / "metrics.jsonl").open("ab")
        self._metrics.truncate(min(metrics_bytes, self._metrics.tell()))  # longer would fill up with zeros
        self._timing = (folder / "timing.jsonl").open("a", encoding="utf-8")
        _wait_for_a_new_second(folder)
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else 0)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log numbers that a repetition of the run would give again; tags like ``train/loss``."""
        row = {"step": step, "epoch": epoch, **values}
        self._metrics.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self._to_tensorboard(step, values)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers that depend on the machine; tags like ``time/images_per_second``."""
        self._timing.write(json.dumps({"step": step, **values}) + "\n")
        self._to_tensorboard(step, values)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture, (3, H, W), uint8 or float in [0, 1]."""
        self._writer.add_image(tag, picture, step)

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Log settings and final metrics for TensorBoard's HPARAMS page, in this run's own event file.

        `SummaryWriter.add_hparams` would make a second run in a folder named after the time.
        """
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
        writer = self._writer._get_file_writer()
        for summary in hparams(plain, dict(final)):
            writer.add_summary(summary)
        self.flush()

    def flush(self) -> int:
        """Bring everything to the files, metrics.jsonl to the disk; returns its length in bytes."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        self._timing.flush()
        self._writer.flush()
        return self._metrics.tell()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._metrics.close()
        self._timing.close()
        self._writer.close()

    def _to_tensorboard(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)


class NullLogger(Tracker):
    """Writes nothing: for the ranks beside the first."""

    def __init__(self) -> None:
        pass

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Nothing."""

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Nothing."""

    def flush(self) -> int:
        """Nothing, 0 bytes."""
        return 0

    def close(self) -> None:
        """Nothing."""


def _wait_for_a_new_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second they were made in.

    A run that starts again within one second would come before what it continues, and be taken for old.
    """
    seconds = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")}
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)
