"""TensorBoard event files."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class TensorboardLogger:
    """Writes an event file into the run folder.

    Args:
        folder: The run folder.
        start_step: Number of completed steps; TensorBoard ignores what an interrupted run logged after them.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        _wait_for_new_second(folder)
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else 0)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:  # noqa: ARG002 - of the protocol
        """Log scalars by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture: (3, H, W), uint8 in [0, 255] or float in [0, 1]."""
        self._writer.add_image(tag, picture, step)

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Log settings and final metrics for the HPARAMS page, in the event file of this run.

        `SummaryWriter.add_hparams` would create a second run, in a folder named after the time.
        """
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
        writer = self._writer._get_file_writer()
        for summary in hparams(plain, dict(final)):
            writer.add_summary(summary)
        self.flush()

    def flush(self) -> None:
        """Write buffered events to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def _wait_for_new_second(folder: Path) -> None:
    """Wait until no event file in the folder was created in the current second.

    TensorBoard reads event files in the order of their names, and a name contains the second of its creation. Within
    one second, the file of a continued run could be read before the file that it continues.
    """
    seconds = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")}
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)
