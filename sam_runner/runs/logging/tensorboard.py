"""TensorBoard event files."""

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from sam_runner.training.metrics_logger import MetricsLogger

EVALUATED_SETS = ("test/", "validation/")
TAGS = {  # TensorBoard shows tags by their first part, in alphabetical order: accuracy and loss come first
    "accuracy": "accuracy/{set}", "accuracy_clean": "accuracy/{set}_clean_labels",
    "accuracy_top5": "accuracy/{set}_top5", "loss": "loss/{set}", "loss_perturbed": "loss/{set}_perturbed",
    "nll": "loss/{set}_nll", "loss_gap": "loss_gap/{set}", "memorised": "noisy_labels/memorised",
    "recovered": "noisy_labels/recovered", "grad_norm": "norms/gradient", "eps_norm": "norms/eps",
    "calibration_error": "other/{set}_calibration_error", "lr": "schedule/lr", "rho": "schedule/rho",
    "loss_scale": "schedule/loss_scale",
}  # fmt: skip


def tensorboard_tag(tag: str) -> str:
    """Return the tag in TensorBoard of a metric, e.g. ``accuracy/test`` of ``test/accuracy``.

    TensorBoard's page then shows the accuracies of all sets in one section, the losses in another.
    """
    name, _, metric = tag.rpartition("/")
    template = TAGS.get(metric, "")
    is_of_set = "{set}" in template
    return template.format(set=name) if template and (name or not is_of_set) else tag


class TensorboardLogger(MetricsLogger):
    """Writes an event file into the run folder. Metrics have the tags of `tensorboard_tag`.

    Args:
        folder: The run folder.
        start_step: Number of completed steps; TensorBoard ignores what an interrupted run logged after them.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        with _name_after(folder), _quiet_thread():
            self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else 0)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:  # noqa: ARG002 - of the interface
        """Log scalars by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tensorboard_tag(tag), value, step)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Log a picture: (3, H, W), uint8 in [0, 255] or float in [0, 1]."""
        self._writer.add_image(tag, picture, step)

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """Log names and texts as a list for the TEXT page."""
        self._writer.add_text(
            tag, "\n".join(f"- **{name}:** {_escape(_text(value))}" for name, value in facts.items()), 0
        )

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:
        """Log settings and the final metrics of the evaluated sets for the HPARAMS page, in the run's event file.

        `SummaryWriter.add_hparams` would create a second run, in a folder named after the time. TensorBoard shows the
        settings that are marked as different first.
        """
        plain = {key: value if isinstance(value, int | float) else _text(value) for key, value in settings.items()}
        metrics = sorted(
            (tensorboard_tag(tag), value) for tag, value in final.items() if tag.startswith(EVALUATED_SETS)
        )
        writer = self._writer._get_file_writer()
        experiment, *session = hparams(plain, dict(metrics))
        plugin_data = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(plugin_data.content)
        for info in content.experiment.hparam_infos:
            info.differs = info.name in swept
        plugin_data.content = content.SerializeToString()
        for summary in (experiment, *session):
            writer.add_summary(summary)
        self.flush()

    def flush(self) -> None:
        """Write buffered events to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def _escape(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text.replace("\n", " "))


def _text(value: Any) -> str:
    """Return the value as a text that UTF-8 can encode; bytes of a path that are not UTF-8 are escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode()


class _QuietThread(event_file_writer._AsyncWriterThread):  # type: ignore[misc]
    """The thread that writes the file. It stores its error, which the next call raises, and prints no traceback."""

    def run(self) -> None:
        """Write until the file is closed or an error occurs."""
        with suppress(Exception):
            super().run()


@contextmanager
def _quiet_thread() -> Iterator[None]:
    """Let the event file that is created in the body be written by a `_QuietThread`."""
    original = event_file_writer._AsyncWriterThread
    event_file_writer._AsyncWriterThread = _QuietThread
    try:
        yield
    finally:
        event_file_writer._AsyncWriterThread = original


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
