"""Checkpoints that are whole or absent, hold plain types only, and are verified before anything in them is used.

``checkpoints/step-N.pt`` is a `torch.save` of a dictionary of tensors and plain Python types; ``step-N.json`` beside
it, written last, gives its size and sha256. A checkpoint without a manifest that fits does not exist: torch.load does
not check sums, and loads most single-bit flips as other numbers.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sam_runner.errors import InputError
from sam_runner.files import read_json, sha256, write_atomically, write_json

FORMAT = 1
log = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: ``checkpoints`` in the run folder; made when the first is saved.
        keep: How many of the latest to keep; the best is kept beside them.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, step: int, state: Mapping[str, Any], *, metrics_bytes: int, is_best: bool) -> Path:
        """Write a checkpoint, then its manifest, then delete those not kept.

        Args:
            step: Steps done.
            state: At least ``model`` and ``optimizer``; tensors and plain types, which ``weights_only=True`` loads.
            metrics_bytes: Length of metrics.jsonl at this step.
            is_best: Whether it is the best so far; it is then kept until a better one comes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        # Through a handle the bytes do not depend on the file's name, and an OSError keeps its number.
        write_atomically(path, lambda handle: torch.save({**state, "step": step, "format": FORMAT}, handle))
        manifest = {
            "format": FORMAT, "file": path.name, "step": step, "bytes": path.stat().st_size, "sha256": sha256(path),
            "metrics_bytes": metrics_bytes,
        }  # fmt: skip
        write_json(path.with_suffix(".json"), manifest)
        if is_best:
            write_json(self.folder / "best.json", manifest)
        self._delete_old()
        return path

    def latest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and manifest of the newest good checkpoint; damaged ones are named in the log and passed over.

        Returns:
            None where no checkpoint was ever completed.

        Raises:
            InputError: Where there are checkpoints and all are damaged.
        """
        manifests = sorted(self.folder.glob("step-*.json"), reverse=True)
        for path in manifests:
            manifest = read_json(path)
            fault = _fault(self.folder, manifest)
            if fault is None:
                return _load(self.folder / manifest["file"]), manifest
            log.warning("checkpoint %s is damaged (%s)", path.with_suffix(".pt"), fault)
        if manifests:
            raise InputError(
                f"all {len(manifests)} checkpoints in {self.folder} are damaged\n  remove the run folder to start again"
            )
        return None

    def best(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """State and manifest of the best checkpoint.

        Raises:
            InputError: Where there is none, or it is damaged.
        """
        manifest = read_json(self.folder / "best.json")
        fault = _fault(self.folder, manifest)
        if fault is not None:
            raise InputError(f"no best checkpoint in {self.folder}: {fault}")
        return _load(self.folder / manifest["file"]), manifest

    def _delete_old(self) -> None:
        best = read_json(self.folder / "best.json") or {}
        for manifest in sorted(self.folder.glob("step-*.json"))[: -self._keep]:
            if manifest.with_suffix(".pt").name != best.get("file"):
                manifest.unlink()
                manifest.with_suffix(".pt").unlink(missing_ok=True)


def _fault(folder: Path, manifest: Any) -> str | None:
    """Why the checkpoint of a manifest cannot be used, or None."""
    if not isinstance(manifest, dict) or not re.fullmatch(r"step-\d+\.pt", str(manifest.get("file"))):
        return "manifest missing or unreadable"
    if manifest.get("format", 0) > FORMAT:
        return f"written in format {manifest['format']}, this version reads up to {FORMAT}"
    path = folder / manifest["file"]
    if not path.is_file():
        return "file missing"
    if path.stat().st_size != manifest.get("bytes"):
        return f"{path.stat().st_size} bytes, manifest says {manifest.get('bytes')}"
    if sha256(path) != manifest.get("sha256"):
        return "sha256 differs from the manifest's"
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that passes its sum and still does not load was not written here
        raise InputError(f"{path} holds more than tensors and plain types, or is no checkpoint: refused") from error
    return state
