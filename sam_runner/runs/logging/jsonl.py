"""JSON lines: metrics.jsonl, which has the same bytes in every repetition of a run, and timing.jsonl."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from sam_runner.training.metrics_logger import MetricsLogger

log = logging.getLogger("sam_runner")


class JsonlLogger(MetricsLogger):
    """Appends JSON objects to metrics.jsonl and timing.jsonl, one per line. JSON has no pictures.

    environment.json, config.yaml and result.json hold the facts, the settings and the final metrics.

    Args:
        folder: The run folder.
        num_bytes: Length of metrics.jsonl at the checkpoint that the run continues from; later rows are deleted.
    """

    name, required = "jsonl", True

    def __init__(self, folder: Path, num_bytes: int) -> None:
        path = folder / "metrics.jsonl"
        kept = _whole_rows(path, num_bytes) if num_bytes else b""
        self._metrics = path.open("ab")
        self._metrics.truncate(len(kept))
        self._metrics.seek(len(kept))  # otherwise `flush` returns the old length until a row is written
        self._timing = (folder / "timing.jsonl").open("a", encoding="utf-8")

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl."""
        row = {"step": step, "epoch": epoch, **values}
        self._metrics.write((json.dumps(row, allow_nan=False) + "\n").encode())

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to timing.jsonl."""
        self._timing.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> int:
        """Write buffered rows to disk; return the length of metrics.jsonl in bytes."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        self._timing.flush()
        return self._metrics.tell()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._metrics.close()
        self._timing.close()


def _whole_rows(path: Path, num_bytes: int) -> bytes:
    """Return the rows in the first `num_bytes` of metrics.jsonl without the rest of a row that was cut off.

    A file that is too short, or has lines that are no rows, was changed by something else than the run: a warning says
    so, and the run goes on, since its weights are in the checkpoint.
    """
    content = path.read_bytes()[:num_bytes] if path.exists() else b""
    kept = content[: content.rfind(b"\n") + 1]
    if len(kept) < num_bytes or not all(map(_is_row, kept.splitlines())):
        log.warning("%s lacks rows that were logged before the checkpoint: the file was changed or cut off", path)
    return kept


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
