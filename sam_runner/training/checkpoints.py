"""The checkpoints of a run: when they are written, which are kept, and how a damaged one is detected.

``checkpoints/step-N.pt`` (``step-N-within.pt`` within an epoch) is a `torch.save` of a dictionary of tensors and plain
Python types. Its manifest ``step-N.json`` is written last and holds the size and the SHA-256 of the checkpoint, and a
checksum of the manifest itself. A checkpoint whose manifest does not match is ignored: `torch.load` verifies no
checksums and loads most single-bit errors as other numbers.
"""

import logging
import time
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json, write_atomically
from sam_runner.utils.manifest import check_manifest, write_manifest
from sam_runner.utils.safe_load import load_tensors

log = logging.getLogger(__name__)


class CheckpointSchedule:
    """Decides when a checkpoint is written.

    Args:
        steps: Number of steps between two checkpoints within an epoch, or None.
        seconds: Seconds between two checkpoints within an epoch, or None.
        min_interval: Seconds after a checkpoint in which the end of an epoch is not saved.
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None, min_interval: float = 0.0) -> None:
        self._steps, self._seconds, self._min_interval = steps, seconds, min_interval
        self.restart()

    def restart(self) -> None:
        """Measure the intervals from now on, after a checkpoint was written."""
        self._last_time = time.monotonic()

    def should_save(self, step: int) -> bool:
        """Return whether to write a checkpoint after `step`, within an epoch."""
        by_steps = self._steps is not None and step % self._steps == 0
        return by_steps or (self._seconds is not None and time.monotonic() - self._last_time >= self._seconds)

    def should_save_at_epoch_end(self) -> bool:
        """Return whether to write a checkpoint at the end of an epoch."""
        return time.monotonic() - self._last_time >= self._min_interval


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: The folder ``checkpoints`` in the run folder; it is created when the first checkpoint is saved.
        keep: Number of the latest checkpoints to keep, at least 2. The best checkpoint is kept too.
        keep_epochs: Numbers of epochs, from 1, whose last checkpoint is never deleted.
        every_epochs: N, if the last checkpoint of every N-th epoch is never deleted; None: no such rule.
    """

    def __init__(
        self, folder: Path, keep: int = 2, keep_epochs: Collection[int] = (), every_epochs: int | None = None
    ) -> None:
        self.folder = folder
        self._keep, self._keep_epochs, self._every_epochs = keep, frozenset(keep_epochs), every_epochs
        self._flags: dict[Path, set[str]] = {}  # of manifests that this process has read or written

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        is_best: bool = False,
        epoch: int | None = None,
        is_incomplete: bool = False,
    ) -> Path:
        """Write a checkpoint, then its manifest, then delete the checkpoints that are not kept.

        Args:
            step: Number of completed steps.
            state: Dictionary with at least ``model`` and ``optimizer``, of tensors and plain types that
                ``weights_only=True`` loads.
            is_best: Whether the checkpoint is the best so far; it is kept until a better one is saved.
            epoch: Number of the epoch, from 1, that the checkpoint ends; None for a checkpoint within an epoch.
            is_incomplete: Whether the run has ended within `epoch`. A run that is made longer continues from before
                this end, so the checkpoint is the best, or that of its epoch, only as long as it is the newest.

        Returns:
            The path of the checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Checkpoints after the last batch and after the end of an epoch have different names, so that saving one cannot
        # damage the other. "." sorts after "-", so the end of the epoch is the newer one.
        path = self.folder / f"step-{step:08d}{'-within' if epoch is None else ''}.pt"
        # With a file handle the bytes do not depend on the file's name, and an OSError keeps its errno.
        write_atomically(path, lambda handle: torch.save({**state, "step": step}, handle))
        is_kept = epoch is not None and self.keeps_epoch(epoch) and not is_incomplete
        write_manifest(path, is_best=is_best, is_kept=is_kept, is_incomplete=is_incomplete)
        self._flags.pop(path.with_suffix(".json"), None)
        self._delete_old()
        return path

    def keeps_epoch(self, epoch: int) -> bool:
        """Return whether the last checkpoint of `epoch` is never deleted."""
        return epoch in self._keep_epochs or (self._every_epochs is not None and epoch % self._every_epochs == 0)

    def load_latest(self) -> dict[str, Any] | None:
        """Load the newest intact checkpoint; log a warning for every damaged one that is newer.

        Returns:
            The state, or None if no checkpoint was ever completed.

        Raises:
            InputError: If there are checkpoints and all of them are damaged.
        """
        return self._load_first_intact(self._list_manifests())

    def load_best(self) -> dict[str, Any]:
        """Load the best checkpoint: the newest one that was saved with ``is_best=True``.

        Raises:
            InputError: If there is none, or it is damaged.
        """
        manifests = self._list_manifests()
        state = self._load_first_intact(_find_best(manifests))
        if state is None:
            names = ", ".join(path.stem for path in manifests)
            raise InputError(
                f"there is no best checkpoint in {self.folder}: one is written after an evaluation\n"
                + (f"  use --checkpoint last; there are: {names}" if names else "  train the run up to an evaluation")
            )
        return state

    def list_names(self, which: str) -> list[str]:
        """Return the names of intact checkpoints, ``step-N`` and alike, oldest first.

        Args:
            which: "last" for the newest one, "best" for the one that `load_best` loads, "all" for all of them.
        """
        manifests = self._list_manifests()
        if which == "best":
            manifests = _find_best(manifests)
        intact = (path.stem for path in manifests if check_manifest(path) is None)
        return list(islice(intact, 1 if which == "last" else None))[::-1]

    def load_by_name(self, name: str) -> dict[str, Any] | None:
        """Load the checkpoint with a name of `list_names`; None if there is none.

        Raises:
            InputError: If it is damaged.
        """
        return self._load_first_intact([path for path in self._list_manifests() if path.stem == name])

    def _list_manifests(self) -> list[Path]:
        """Return the manifests, newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def _load_first_intact(self, manifests: list[Path]) -> dict[str, Any] | None:
        faults = []
        for path in manifests:
            fault = check_manifest(path)
            if fault is None:
                return _load(path.with_suffix(".pt"))
            faults.append(f"{path.with_suffix('.pt')}: {fault}")
            log.warning("checkpoint ignored: %s", faults[-1])
        if faults:
            lines = "\n".join(f"  {fault}" for fault in faults[:5])
            hint = "use --checkpoint last" if self.list_names("last") else "train the run again, in a new folder"
            raise InputError(f"none of {len(faults)} checkpoints can be used\n{lines}\n  {hint}")
        return None

    def _delete_old(self) -> None:
        """Delete all files but the latest checkpoints, the best one and those of kept epochs.

        This includes checkpoints without a manifest, which a crash left behind.
        """
        manifests = self._list_manifests()
        for path in manifests:  # each is read once: a run may keep thousands
            if path not in self._flags:
                self._flags[path] = {key for key in ("is_best", "is_kept", "is_incomplete") if _has_flag(path, key)}
        # Also if the newest is the best, the best of the complete epochs is kept: a longer run may need it.
        best = [path for path in manifests if self._flags[path] & {"is_best", "is_incomplete"} == {"is_best"}][:1]
        kept = {*manifests[: self._keep], *best, *(path for path in manifests if "is_kept" in self._flags[path])}
        for manifest in set(manifests) - kept:
            manifest.unlink()
        for path in self.folder.glob("step-*.pt*"):
            if path.with_name(path.name.split(".")[0]).with_suffix(".json") not in kept:
                path.unlink()


def _find_best(manifests: list[Path]) -> list[Path]:
    """Return the manifest of the best checkpoint, from all manifests, newest first; an empty list without one."""
    best = (path for path in manifests if _has_flag(path, "is_best"))
    return list(islice((path for path in best if path == manifests[0] or not _has_flag(path, "is_incomplete")), 1))


def _has_flag(manifest: Path, key: str) -> bool:
    content = read_json(manifest)
    return isinstance(content, dict) and content.get(key) is True


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_tensors(path)
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= state.keys():
        raise InputError(f"{path} is not a checkpoint of a run: it lacks model, optimizer or step")
    return state
