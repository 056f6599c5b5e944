"""Part folders: every command answers a damaged run folder, and loses nothing of the user's."""

import hashlib
import importlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from sam_runner.training.checkpoints import CheckpointFolder
from scripts.reliability.faults import write_images
from scripts.reliability.fuzzing.command_lines import TINY
from scripts.reliability.fuzzing.damages import FOREIGN, damage
from scripts.reliability.fuzzing.processes import call

BASE = [word for word in TINY if not word.startswith("max_steps")] + ["epochs=2", "checkpoint.min_interval=0"]
RUNS = {
    "sgd": ["optimizer=sgd", "data.val_fraction=0.25"],
    "sam": ["optimizer=sam", "ema_decay=0.9", "logger=[csv,tensorboard]"],
    "stopped": ["optimizer=sam", "checkpoint.every_steps=1", "noise=symmetric", "noise.rate=0.2"],
    "early": ["optimizer=sgd", "epochs=6", "early_stopping.patience=1", "data.val_fraction=0.25", "lr=0.5"],
}
SMALL = ["--examples", "16"]
# Commands on a run folder RUN; "write" lists what they may write into it.
READERS: dict[str, tuple[str, list[str]]] = {
    "eval": ("evaluate", ["RUN"]),
    "eval best": ("evaluate", ["RUN", "--checkpoint", "best"]),
    "verify": ("verify", ["RUN"]),
    "status": ("status", ["RUN"]),
    "report": ("report", ["RUN"]),
    "report of runs": ("report", ["."]),
    "report select": ("report", [".", "--select", "rho", "--baseline", "optimizer=sgd"]),
    "predict": ("inference.predict", ["RUN", "images", "--out", "new/p.csv"]),
    "predict split": ("inference.predict", ["RUN", "--out", "new/p.csv"]),
    "suspects": ("inference.suspects", ["RUN", "--out", "new/s.csv"]),
    "export": ("inference.export", ["RUN", "--out", "new/m.safetensors", "--format", "safetensors"]),
    "curvature": ("curvature", ["RUN", *SMALL, "--k", "1", "--trace", "6", "--density-steps", "3", "--density", "1"]),
    "sharpness": ("sharpness", ["RUN", *SMALL, "--steps", "1", "--directions", "1", "--restarts", "0"]),
    "landscape": ("landscape", ["RUN", *SMALL, "--points", "3", "--line-points", "3"]),
    "copy": ("train", ["config=RUN", "run_dir=new/copy", "max_steps=1"]),
}
WRITERS: dict[str, tuple[str, list[str]]] = {
    "resume": ("train", ["resume=RUN"]),
    "resume longer": ("train", ["resume=RUN", "epochs=7"]),
    "same command": ("train", []),
}
OUTPUTS = ("report", "analysis", "plots", "figures")  # beginnings of names that a reader may write into a folder


def stop_in_save(number: int) -> Callable[[], None]:
    """Return a patch with which a process ends after its checkpoint of this number."""

    def patch() -> None:
        original, count = CheckpointFolder.save, [0]

        def save(self, *arguments, **keywords):
            path = original(self, *arguments, **keywords)
            count[0] += 1
            if count[0] == number:
                os._exit(0)
            return path

        CheckpointFolder.save = save

    return patch


def snapshot(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder by its path; of a link its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Folders:
    """Trials of damaged run folders."""

    title = "damaged run folders"

    def __init__(self, work: Path) -> None:
        self._work, self._home = work, work / "home"
        self._home.mkdir()
        write_images(self._home / "images")
        self._number = 0
        for name, words in RUNS.items():
            patch = stop_in_save(4) if name == "stopped" else None
            self._call("train", [*BASE, *words, f"run_dir={name}"], self._home, patch)

    def _call(self, command: str, words: list[str], folder: Path, patch=None):
        entry = importlib.import_module(f"sam_runner.commands.{command}").main
        return call(entry, words, folder, self._work / "log", seconds=240, patch=patch)

    def try_one(self, draws: random.Random) -> tuple[str, list[str], str]:
        """Damage a run and call a command on it; see `Lines.try_one`."""
        name = draws.choice(sorted(RUNS))
        other = self._home / draws.choice(sorted(RUNS))
        title = draws.choice(sorted({**READERS, **WRITERS, "resume ": None, "same command ": None})).strip()
        command, words = {**READERS, **WRITERS}[title]
        folder = self._work / "trial"
        shutil.copytree(self._home, folder, symlinks=True)
        done = damage(folder / name, draws, other)
        words = [word.replace("RUN", name) for word in words]
        if title == "same command":
            words = [*BASE, *RUNS[name], f"run_dir={name}"]
        before = snapshot(folder)
        answer = self._call(command, words, folder)
        faults = answer.find_faults(num_errors=(0, 1) if title == "verify" else (1,))
        faults += find_losses(before, snapshot(folder), title, answer.code)
        if answer.code == 0 and "continuing " in answer.stdout and "metrics.jsonl" not in answer.stdout:
            faults += find_gaps(folder / name / "metrics.jsonl")
        shutil.rmtree(folder)
        texts = [
            f"{title}: {command} {words}",
            f"{name}: {'; '.join(done)}",
            answer.stdout[-500:],
            answer.stderr[-2500:],
        ]
        return f"{'reads' if title in READERS else 'continues'}, exit code {answer.code}", faults, "\n".join(texts)


def find_gaps(path: Path) -> list[str]:
    """Return what is wrong with the rows of a continued run, which logs every step."""
    try:
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"metrics.jsonl cannot be read, and the run does not say so: {error!r}"]
    return [] if steps == list(range(1, len(steps) + 1)) else ["rows of metrics.jsonl are lost, and the run is silent"]


def find_losses(before: dict[str, str], after: dict[str, str], title: str, code: int | None) -> list[str]:
    """Return the files that a command changed or deleted and should not have."""
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    if title in READERS:
        lost = [name for name in changed if not any(part.startswith(OUTPUTS) for part in Path(name).parts)]
    elif code == 2:  # refused: the run is as it was
        lost = [name for name in changed if Path(name).name not in (".lock", "run.log", "status.json")]
        lost = [name for name in lost if ".tmp." not in name]
    else:
        lost = [name for name in changed if name.partition("/")[2] in FOREIGN]
    return [f"changed or deleted {', '.join(lost[:4])}"] if lost else []
