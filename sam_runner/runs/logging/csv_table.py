"""metrics.csv: the rows of metrics.jsonl as a table, for programs that do not read JSON lines."""

import csv
import io
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sam_runner.utils.files import write_atomically


class CsvLogger:
    """Writes metrics.csv from metrics.jsonl when the run ends or is stopped.

    Rows have different metrics, so the columns are known at the end only. A cell without a metric is empty.

    Args:
        folder: The run folder. Its `JsonlLogger` is closed first.
    """

    name, required = "csv", False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Ignore the call: metrics.jsonl has the row."""

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the call: timing.jsonl has the row."""

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Ignore the picture."""

    def text(self, tag: str, facts: Mapping[str, str]) -> None:
        """Ignore the text."""

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float], swept: Collection[str] = ()) -> None:
        """Ignore the call: config.yaml and result.json hold settings and final metrics."""

    def flush(self) -> None:
        """Do nothing: the table is written at the end."""

    def close(self) -> None:
        """Write metrics.csv; numbers keep all their digits."""
        rows = [json.loads(line) for line in (self._folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        columns = dict.fromkeys(["step", "epoch", *(name for row in rows for name in row)])
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self._folder / "metrics.csv", lambda handle: handle.write(text.getvalue().encode()))
