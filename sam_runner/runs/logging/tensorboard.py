"""TensorBoard event files."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorboard.summary.writer import event_file_writer
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
        with _name_after(folder):
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
        plain = {key: value if isinstance(value, int | float) else _text(value) for key, value in settings.items()}
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


def _text(value: Any) -> str:
    """Return the value as a text that UTF-8 can encode; bytes of a path that are not UTF-8 are escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode()


@contextmanager
def _name_after(folder: Path) -> Iterator[None]:
    """Let an event file that is created in the body have a name after those of the folder's event files.

    TensorBoard reads event files in the order of their names, which begin with the second of their creation. Without
    this, the file of a run that is continued within the same second, or after the clock was set back, is read before
    the file that it continues. `EventFileWriter` has no argument for the name, so it is given another clock.
    """
    numbers = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    second = max([time.time(), *(int(number) + 1 for number in numbers if number.isdecimal())])
    clock = event_file_writer.time
    event_file_writer.time = SimpleNamespace(time=lambda: second)
    try:
        yield
    finally:
        event_file_writer.time = clock
