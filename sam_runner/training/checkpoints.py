"""Checkpoints that are whole or absent, hold plain types only, and are verified before anything in them is used.

``checkpoints/step-N.pt`` (``step-N-within.pt`` within an epoch) is a `torch.save` of a dictionary of tensors and plain
Python types; a ``.json`` beside it, written last, gives its size and sha256, and a sum of itself. A checkpoint without
a manifest that fits does not exist: torch.load checks no sums, and loads most single-bit flips as other numbers.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json, write_atomically
from sam_runner.utils.manifest import check_manifest, write_manifest
from sam_runner.utils.safe_load import load_tensors

log = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: ``checkpoints`` in the run folder; made when the first is saved.
        keep: How many of the latest to keep, at least 2; the best is kept beside them.
        keep_epochs: Ends of epochs, from 1, that are kept for good.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_epochs: Collection[int] = ()) -> None:
        self.folder = folder
        self._keep, self._keep_epochs = keep, frozenset(keep_epochs)

    def save(self, step: int, state: Mapping[str, Any], *, is_best: bool = False, epoch: int | None = None) -> Path:
        """Write a checkpoint, then its manifest, then delete those not kept.

        Args:
            step: Steps done.
            state: At least ``model`` and ``optimizer``; tensors and plain types, which ``weights_only=True`` loads.
            is_best: Whether it is the best so far; it is then kept until a better one comes.
            epoch: The number of the epoch, from 1, that ends here; None within one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # The end of an epoch has another name than its last batch: neither may spoil the other, and it sorts after it.
        path = self.folder / f"step-{step:08d}{'-within' if epoch is None else ''}.pt"
        # Through a handle the bytes do not depend on the file's name, and an OSError keeps its number.
        write_atomically(path, lambda handle: torch.save({**state, "step": step}, handle))
        write_manifest(path, is_best=is_best, is_kept=epoch in self._keep_epochs)
        self._delete_old()
        return path

    def keeps(self, epoch: int) -> bool:
        """Whether the end of an epoch is kept for good."""
        return epoch in self._keep_epochs

    def latest(self) -> dict[str, Any] | None:
        """State of the newest good checkpoint; damaged ones are named in the log and passed over.

        Returns:
            None where no checkpoint was ever completed.

        Raises:
            InputError: Where there are checkpoints and none can be used.
        """
        return self._first_good(self._manifests())

    def best(self) -> dict[str, Any]:
        """State of the checkpoint that was saved as best last.

        Raises:
            InputError: Where there is none, or it is damaged.
        """
        state = self._first_good([path for path in self._manifests() if self._says(path, "is_best")][:1])
        if state is None:
            there = ", ".join(path.stem for path in self._manifests())
            raise InputError(
                f"there is no best checkpoint in {self.folder}: one is written after an evaluation\n"
                + (f"  use checkpoint=last; there are: {there}" if there else "  there are no others either")
            )
        return state

    def _manifests(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    @staticmethod
    def _says(manifest: Path, key: str) -> bool:
        content = read_json(manifest)
        return isinstance(content, dict) and content.get(key) is True

    @staticmethod
    def _first_good(manifests: list[Path]) -> dict[str, Any] | None:
        faults = []
        for path in manifests:
            fault = check_manifest(path)
            if fault is None:
                return _load(path.with_suffix(".pt"))
            faults.append(f"{path.with_suffix('.pt')}: {fault}")
            log.warning("checkpoint passed over: %s", faults[-1])
        if faults:
            shown = "\n".join(f"  {fault}" for fault in faults[:5])
            raise InputError(f"no checkpoint can be used, of {len(faults)}\n{shown}")
        return None

    def _delete_old(self) -> None:
        """Keep the latest, the best and those chosen; what a crash left without a manifest goes too."""
        manifests = self._manifests()
        best = [path for path in manifests if self._says(path, "is_best")][:1]
        kept = {*manifests[: self._keep], *best, *(path for path in manifests if self._says(path, "is_kept"))}
        for manifest in set(manifests) - kept:
            manifest.unlink()
        for path in self.folder.glob("step-*.pt*"):
            if path.with_name(path.name.split(".")[0]).with_suffix(".json") not in kept:
                path.unlink()


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_tensors(path)
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= state.keys():
        raise InputError(f"{path} is no checkpoint of a run: it lacks model, optimizer or step")
    return state
