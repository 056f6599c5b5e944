"""Part leaks: memory and open files of a run over its epochs, and of a sweep over its jobs."""

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from sam_runner.commands import train as train_command
from scripts.reliability.fuzzing.processes import finish, start

HIDDEN = ["device=cpu", "precision=fp32", "batch_size=128", "model.width=4", "log_every=1000"]
RUN = ["data=digits", *HIDDEN, "optimizer=sam", "checkpoint.min_interval=0", "checkpoint.keep=2", "run_dir=r"]
SWEEP = ["-m", "data=synthetic", "data.num_train=48", "data.num_test=16", "data.image_size=8", "epochs=1", *HIDDEN,
         "batch_size=16", "sweep.jobs=1", "optimizer=sam", "sweep_name=s"]  # fmt: skip
MEGABYTE = 2**20


@dataclass
class Samples:
    """Measurements of a process while it runs.

    Attributes:
        done: Epochs or jobs that are done.
        memory: Resident memory in MiB.
        files: Number of open files.
    """

    done: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def add(self, process: int, done: int) -> None:
        """Measure a process; one that has ended is not measured."""
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            return
        if pages:
            self.done.append(done)
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE)
            self.files.append(files)

    def slope(self) -> float:
        """Return the least-squares slope of the memory in MiB per 100 epochs or jobs, over the second half."""
        pairs = [(d, m) for d, m in zip(self.done, self.memory, strict=True) if d >= self.done[-1] / 2]
        mean = [sum(values) / len(pairs) for values in zip(*pairs, strict=True)]
        spread = sum((d - mean[0]) ** 2 for d, _ in pairs)
        return 100 * sum((d - mean[0]) * (m - mean[1]) for d, m in pairs) / spread if spread else 0.0


class Leaks:
    """A long run or a long sweep."""

    title = "memory and open files over a long time"
    max_slope = 2.0  # MiB per 100 epochs or jobs
    epochs, jobs = 1000, 500

    def __init__(self, work: Path) -> None:
        self._work = work

    def try_one(self, draws: random.Random) -> tuple[str, list[str], str]:
        """Measure a run or a sweep; see `Lines.try_one`."""
        is_run = draws.random() < 0.5
        words = [*RUN, f"epochs={self.epochs}"] if is_run else [*SWEEP, f"seed=range({self.jobs})"]
        folder = self._work / "trial"
        folder.mkdir()
        child, samples = start(train_command.main, words, folder, self._work / "log"), Samples()
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            done = (
                count_epochs(folder / "r") if is_run else sum(1 for _ in folder.glob("outputs/sweeps/s/*/result.json"))
            )
            if 0 < done < (self.epochs if is_run else self.jobs):  # after the last one reports and plots are made
                samples.add(child, done)
            time.sleep(1.0)
        answer = finish(child, self._work / "log", 600)
        faults = answer.find_faults()
        if len(samples.done) < 20:
            faults.append(f"only {len(samples.done)} measurements")
            return "too short", faults, answer.stderr[-2000:]
        half = len(samples.files) // 2
        slope, before, after = samples.slope(), max(samples.files[:half]), max(samples.files[half:])
        faults += [f"memory grows by {slope:.2f} MiB per 100"] if slope > self.max_slope else []
        faults += [f"open files grow from {before} to {after}"] if after > before + 2 else []
        shutil.rmtree(folder)
        memory = f"{samples.memory[half]:.0f} MiB at the half, {samples.memory[-1]:.0f} at the end"
        kind = f"run of {self.epochs} epochs" if is_run else f"sweep of {self.jobs} jobs"
        text = f"{kind}: {memory}, slope {slope:+.2f} MiB per 100; open files at most {before}, then {after}"
        return text, faults, answer.stderr[-2000:]


def count_epochs(run: Path) -> int:
    """Return the number of epochs that a run has logged."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b'"test/nll"')
    except OSError:
        return 0
