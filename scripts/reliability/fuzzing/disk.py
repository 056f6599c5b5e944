"""Part disk: a disk that is full at any write of a run, a sweep, a report or an analysis; then there is space again."""

import importlib
import os
import random
import shutil
from pathlib import Path

from scripts.reliability.faults import write_images
from scripts.reliability.fuzzing.folders import BASE, READERS, snapshot
from scripts.reliability.fuzzing.full_disk import FullDisk
from scripts.reliability.fuzzing.processes import Answer, call

RUN = [*BASE, "optimizer=sam", "ema_decay=0.9", "data.val_fraction=0.25", "logger=[csv,tensorboard]"]
SWEEP = ["-m", *BASE, "epochs=1", "optimizer=sgd,sam", "seed=0,1", "sweep.jobs=1", "sweep_name=s"]
WRITERS = ("report", "report of runs", "predict", "suspects", "export", "curvature", "sharpness", "landscape", "copy")
KINDS: dict[str, tuple[str, list[str]]] = {
    "run": ("train", [*RUN, "run_dir=RUN"]),
    "longer run": ("train", ["resume=RUN", "epochs=4"]),
    "sweep": ("train", SWEEP),
    **{name: READERS[name] for name in WRITERS},
}


class Disk:
    """Trials with a full disk."""

    title = "full disk at a random write, then the same command with space"

    def __init__(self, work: Path) -> None:
        self._work, self._home, self._empty = work, work / "home", work / "empty"
        self._home.mkdir()
        self._empty.mkdir()
        write_images(self._home / "images")
        self._call("train", [*RUN, "run_dir=RUN"], self._home, None)
        self._references: dict[str, tuple[int, dict[str, str]]] = {}

    def _start(self, kind: str) -> Path:
        folder = self._work / "trial"
        shutil.copytree(self._empty if kind in ("run", "sweep") else self._home, folder)
        return folder

    def _call(self, command: str, words: list[str], folder: Path, capacity: int | None) -> Answer:
        def patch() -> None:
            disk = FullDisk(folder, capacity)
            disk.install()
            end = os._exit

            def leave(code: int) -> None:
                (self._work / "count").write_text(str(disk.num_writes))
                end(code)

            os._exit = leave

        entry = importlib.import_module(f"sam_runner.commands.{command}").main
        return call(entry, words, folder, self._work / "log", seconds=240, patch=patch)

    def _reference(self, kind: str) -> tuple[int, dict[str, str]]:
        """Return the number of writes of an undisturbed call, and digests of its files that every call repeats."""
        if kind not in self._references:
            folder = self._start(kind)
            answer = self._call(*KINDS[kind], folder, None)
            if answer.code != 0:
                raise RuntimeError(f"{kind} fails undisturbed: {answer}")
            count = int((self._work / "count").read_text())
            self._references[kind] = count, repeatable(folder)
            shutil.rmtree(folder)
        return self._references[kind]

    def try_one(self, draws: random.Random) -> tuple[str, list[str], str]:
        """Call a command on a disk that gets full, then again; see `Lines.try_one`."""
        kind = draws.choice([*KINDS, "run", "run", "longer run", "sweep", "sweep"])
        num_writes, files = self._reference(kind)
        capacity = draws.randrange(num_writes)
        folder = self._start(kind)
        first = self._call(*KINDS[kind], folder, capacity)
        faults = first.find_faults(num_errors=range(1, 8) if kind == "sweep" else (1,))
        left = [name for name in snapshot(folder) if ".tmp" in Path(name).name]
        faults += [f"left {left[0]}"] if left else []
        faults += [] if first.code == 0 or "No space left" in first.stderr else ["does not say why"]
        command, words = KINDS[kind]
        again = [*words, "--overwrite"] if "--out" in words and kind != "copy" else words
        second = self._call(command, again, folder, None)
        faults += [f"with space: {fault}" for fault in second.find_faults()]
        after = repeatable(folder)
        if second.code != 0:
            faults.append(f"with space: exit code {second.code}")
        elif kind in ("run", "longer run", "sweep") and after != files:
            names = sorted(name for name in {*files, *after} if files.get(name) != after.get(name))
            faults.append(f"with space: other content of {', '.join(names[:5])}")
        shutil.rmtree(folder)
        title = f"{kind if kind in ('run', 'longer run', 'sweep') else 'other command'}, exit code {first.code}"
        texts = [f"{answer.stdout[-700:]}{answer.stderr[-2500:]}" for answer in (first, second)]
        details = f"{kind}: {command} {words}, {capacity} of {num_writes} writes\n" + "\n--- with space\n".join(texts)
        return title, faults, details


def repeatable(folder: Path) -> dict[str, str]:
    """Return digests of the metrics and the names of the checkpoints, which every call repeats."""
    found = {name: digest for name, digest in snapshot(folder).items() if name.endswith("metrics.jsonl")}
    return found | {str(path.relative_to(folder)): "" for path in folder.rglob("step-*.pt")}
