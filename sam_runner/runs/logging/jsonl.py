"""metrics.jsonl, the same bytes for the same run, and timing.jsonl."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class JsonlLogger:
    """Appends one JSON object a line.

    Args:
        folder: The run folder.
        num_bytes: Length of metrics.jsonl when the checkpoint was written that the run continues from; the rest is cut.
    """

    name = "jsonl"

    def __init__(self, folder: Path, num_bytes: int = 0) -> None:
        self._metrics = (folder / "metrics.jsonl").open("ab")
        self._metrics.truncate(min(num_bytes, self._metrics.tell()))  # a longer file would be filled with zeros
        self._timing = (folder / "timing.jsonl").open("a", encoding="utf-8")

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl."""
        row = {"step": step, "epoch": epoch, **values}
        self._metrics.write((json.dumps(row, allow_nan=False) + "\n").encode())

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to timing.jsonl."""
        self._timing.write(json.dumps({"step": step, **values}) + "\n")

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Do nothing: pictures are no JSON."""

    def hparams(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Do nothing: config.yaml and result.json hold them."""

    def flush(self) -> int:
        """Bring metrics.jsonl to the disk; return its length in bytes."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        self._timing.flush()
        return self._metrics.tell()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._metrics.close()
        self._timing.close()
