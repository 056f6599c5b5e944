"""metrics.csv: the rows of metrics.jsonl as a table, for programs that do not read JSON lines."""

import csv
import io
import json
from pathlib import Path

from sam_runner.training.metrics_logger import MetricsLogger
from sam_runner.utils.files import write_bytes


class CsvLogger(MetricsLogger):
    """Writes metrics.csv from metrics.jsonl when the run ends or is stopped.

    Rows have different metrics, so the columns are known at the end only. A cell without a metric is empty.

    Args:
        folder: The run folder. Its `JsonlLogger` is closed first.
    """

    name = "csv"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        """Write metrics.csv; numbers keep all their digits."""
        rows = [json.loads(line) for line in (self._folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        columns = dict.fromkeys(["step", "epoch", *(name for row in rows for name in row)])
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_bytes(self._folder / "metrics.csv", text.getvalue().encode())
