"""Part kills: processes of runs and sweeps are killed at random; the same command then ends as without the kill."""

import contextlib
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from sam_runner.commands import train as train_command
from scripts.reliability.faults import write_images
from scripts.reliability.fuzzing.processes import CONNECT, Answer, finish, start

SECONDS = 240.0  # that a call may take, on a machine with other work
BASE = ["device=cpu", "precision=fp32", "batch_size=16", "epochs=2", "log_every=1", "checkpoint.every_steps=1",
        "checkpoint.min_interval=0", "model.width=4", "augment=basic", "augment.pad=1", "optimizer=sam"]  # fmt: skip
SYNTHETIC = ["data=synthetic", "data.num_train=96", "data.num_test=32", "data.image_size=8", "data.num_classes=4"]
KINDS = (
    "run", "worker of the data", "one of two ranks", "first process of a sweep", "process of a job of a sweep",
    "one of two calls of a sweep", "one of two calls of a run",
)  # fmt: skip
SWEEP = ["-m", *BASE, *SYNTHETIC, "sweep.jobs=2", "seed=0,1,2", "rho=0.05,0.1", "sweep_name=s"]


class Kills:
    """Trials of kills. Each kills a process at a random moment and then repeats the command until it is done.

    Attributes:
        kinds: What is killed; a trial draws one of them.
    """

    title = "kills, then the same command"
    kinds: tuple[str, ...] = KINDS

    def __init__(self, work: Path) -> None:
        self._work, self._images = work, write_images(work / "images")
        self._references: dict[str, tuple[float, dict[str, bytes]]] = {}
        disk = ["data=image_folder", f"data.root={self._images}", "data.storage=disk", "data.image_size=8"]
        words = (
            [*BASE, *SYNTHETIC, "run_dir=r"],
            [*BASE, *disk, "data.num_workers=2", "run_dir=r"],
            [*BASE, *SYNTHETIC, "rank_timeout=20", "run_dir=r"],
            *[SWEEP] * 3,
            [*BASE, *SYNTHETIC, "run_dir=r"],
        )
        self._words = dict(zip(KINDS, words, strict=True))

    def try_one(self, draws: random.Random) -> tuple[str, list[str], str]:
        """Kill a process of a call; see `Lines.try_one`."""
        kind = draws.choice(self.kinds)
        duration, expected = self._reference(kind)
        folder = self._work / "trial"
        folder.mkdir()
        calls = self._start(kind, folder, 2 if "two calls" in kind else 1)
        _wait_until(lambda: any(folder.rglob("config.yaml")) or _has_ended(calls[0][0]), SECONDS)
        time.sleep(draws.uniform(0, 0.9 * duration))
        victim = self._choose(kind, calls, draws)
        killed = False
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed = True
        answers = [finish(child, log, SECONDS) for child, log in calls]
        faults = [fault for (child, _), answer in zip(calls, answers, strict=True) if child != victim
                  for fault in self._find_faults(kind, answer)]  # fmt: skip
        again = [finish(child, log, SECONDS) for child, log in self._start(kind, folder, 1)]
        faults += [f"the same command: {fault}" for answer in again for fault in answer.find_faults(num_errors=(0, 1))]
        if any(answer.code != 0 for answer in again):
            faults.append(f"the same command: exit code {[answer.code for answer in again]}")
        elif read_metrics(folder) != expected:
            faults.append("other metrics than undisturbed")
        shutil.rmtree(folder)
        texts = [f"{answer.code}\n{answer.stdout[-600:]}{answer.stderr[-2500:]}" for answer in [*answers, *again]]
        return f"{kind}{'' if killed else ', the run ended before the kill'}", faults, "\n---\n".join(texts)

    def _find_faults(self, kind: str, answer: Answer) -> list[str]:
        """Return the faults of a call that was not killed itself: it may fail, but with a message."""
        if kind == "one of two ranks":  # rank 1 prints its own message, and gloo's text may be beside it
            return answer.find_faults(num_errors=(0, 1, 2))
        return answer.find_faults(num_errors=range(10))

    def _reference(self, kind: str) -> tuple[float, dict[str, bytes]]:
        """Return the seconds from the first file to the end of an undisturbed call, and its metrics."""
        key = "\n".join(self._words[kind]) + str("ranks" in kind)
        if key not in self._references:
            folder = self._work / "reference"
            folder.mkdir()
            calls = self._start(kind, folder, 1)
            _wait_until(lambda: any(folder.rglob("config.yaml")) or _has_ended(calls[0][0]), SECONDS)
            began = time.monotonic()
            answers = [finish(child, log, SECONDS) for child, log in calls]
            if any(answer.code != 0 for answer in answers):
                raise RuntimeError(f"{kind} fails undisturbed: {answers}")
            self._references[key] = time.monotonic() - began, read_metrics(folder)
            shutil.rmtree(folder)
        return self._references[key]

    def _start(self, kind: str, folder: Path, count: int) -> list[tuple[int, Path]]:
        """Start a command, once or several times, or on two ranks; return the processes and their logs."""
        patches: list[Callable[[], None] | None] = [None] * count
        if "ranks" in kind:
            port = _find_port()
            patches = [_be_rank(rank, port) for rank in range(2)]
        logs = [self._work / f"log{number}" for number in range(len(patches))]
        return [
            (start(train_command.main, self._words[kind], folder, log, patch), log)
            for log, patch in zip(logs, patches, strict=True)
        ]

    def _choose(self, kind: str, calls: list[tuple[int, Path]], draws: random.Random) -> int | None:
        """Return the process to kill, None if there is none any more."""
        own = draws.choice(calls)[0]
        if "process of a job" not in kind and "worker" not in kind:
            return own
        others = find_group(own)
        return draws.choice(others) if others else None


def _be_rank(rank: int, port: int) -> Callable[[], None]:
    """Return a patch that gives a process the variables of torchrun and the network that the ranks need."""

    def patch() -> None:
        socket.socket.connect = CONNECT
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")

    return patch


def _find_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def find_group(leader: int) -> list[int]:
    """Return the other processes of a process group, without those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and int(path.parent.name) != leader and state != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def read_metrics(folder: Path) -> dict[str, bytes]:
    """Return the metrics of the finished runs below a folder by the run's name."""
    return {path.parent.name: path.with_name("metrics.jsonl").read_bytes() for path in folder.rglob("result.json")}
