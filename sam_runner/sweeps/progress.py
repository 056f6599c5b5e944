"""How far a sweep or a run is, read from its files: the line that a sweep shows, and what sam-status prints."""

import heapq
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sam_runner.runs.folder import NOT_STARTED, find_job_folders
from sam_runner.runs.lock import is_locked
from sam_runner.runs.plan import PlanEntry, read_plan
from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import call_name, read_status
from sam_runner.utils.console import format_count, format_duration

NO_RESULT = ("failed", "refused", "not run")  # states of a job that is not continued in its call
ENDED_EARLY = ("failed", "refused", "died", "interrupted", "preempted", "not run")
INTERVAL = 1.0  # seconds between two looks at the files
REPEAT = 300.0  # seconds after which the line is printed again where nothing has changed
MAX_SHARE = 0.05  # of the time that looking takes: a sweep of ten thousand jobs is read less often
TAIL = 16384  # bytes at the end of metrics.jsonl that hold its last rows


@dataclass(frozen=True)
class JobState:
    """State of a job, or of a run.

    Attributes:
        name: Name of the run folder.
        state: "waiting", "running", "finished", "died", or another ``status`` of status.json.
        epochs: Epochs of the run.
        done: Epochs that are done, with the part of one that is known to be done.
        cost: Duration of the run relative to other jobs of the sweep, in any unit.
        seconds: Time that the last call that has trained the run took for the epochs that are done; 0 if it is not
            known.
        since: Seconds since then; 0 for a run that is not running.
        from_epoch: Epochs that were done when that call began.
        kind: What the run has in common with others that take as long per unit of `cost`.
        status: Content of status.json.
    """

    name: str
    state: str
    epochs: int
    done: float = 0
    cost: float = 1.0
    seconds: float = 0.0
    since: float = 0.0
    from_epoch: int = 0
    kind: tuple[str, ...] = ()
    status: dict[str, Any] | None = None

    @property
    def remaining_cost(self) -> float:
        """Part of the cost that is still to be paid; 0 for a job that has failed."""
        if self.state in ("finished", *NO_RESULT):
            return 0.0
        return self.cost * (1 - self.done / max(1, self.epochs))

    @property
    def paid_cost(self) -> float:
        """Part of the cost that was paid in `seconds`."""
        return self.cost * max(0, self.done - self.from_epoch) / max(1, self.epochs)

    def seconds_left(self, seconds_per_cost: float) -> float:
        """Return an estimate of the remaining time.

        The time since the last known progress counts as progress, but not beyond the next epoch.

        Args:
            seconds_per_cost: Time that a unit of `cost` takes.
        """
        epoch = self.cost * seconds_per_cost / max(1, self.epochs)
        return max(0.0, self.remaining_cost * seconds_per_cost - min(self.since, epoch))


def read_state(
    folder: Path, epochs: int, cost: float = 1.0, not_started: Path | None = None, kind: tuple[str, ...] = ()
) -> JobState:
    """Read the state of a run.

    Args:
        folder: The run folder, which may not exist yet.
        epochs: Epochs of the run.
        cost: Duration relative to other jobs of the sweep.
        not_started: Folder with the status of a job that has no run, None for none.
        kind: See `JobState`.
    """
    status = read_status(folder)
    if not status and not_started is not None:
        status = read_status(not_started)
    state, from_epoch = str(status.get("status", "waiting")), int(status.get("from_epoch", 0))
    seconds, done, since = float(status.get("seconds", 0)), float(from_epoch), 0.0
    if read_finished_result(folder) is not None:
        state, done = "finished", epochs
    elif state == "running":
        found, age = _read_progress(folder)
        done = max(from_epoch, found)
        seconds = _seconds_since(str(status.get("time")))
        since = min(age, seconds) if done > from_epoch else seconds
        seconds -= since
        if is_locked(folder, str(status.get("host"))) is False:
            state, since = "died", 0.0
    elif state not in ("waiting", *NO_RESULT):  # it continues from its checkpoint
        done = max(from_epoch, _read_progress(folder)[0])
    return JobState(folder.name, state, epochs, min(done, epochs), cost, seconds, since, from_epoch, kind, status)


def _read_progress(folder: Path) -> tuple[float, float]:
    """Return the number of epochs that are done according to the last rows of metrics.jsonl, and its age in seconds.

    An epoch is over in a row with an evaluation. Later rows say how many steps were taken since then. Where no
    evaluation is found, the age is 0.
    """
    try:
        with (folder / "metrics.jsonl").open("rb") as handle:
            start = max(0, handle.seek(0, os.SEEK_END) - TAIL)
            handle.seek(start)
            lines = handle.read().splitlines(keepends=True)
            age = max(0.0, time.time() - os.fstat(handle.fileno()).st_mtime)
        if not lines[-1].endswith(b"\n"):  # a row of which a part is written
            lines.pop()
        last = json.loads(lines[-1])
        rows = map(json.loads, reversed(lines[bool(start) :]))  # the first line may be the end of one
        end = next((row for row in rows if "test/nll" in row), None)
        if end is None:
            return int(last["epoch"]) - 1, 0.0  # without an evaluation the epoch may not be over
        steps = last["step"] / end["step"] if end != last else 1
        return min(end["epoch"] * steps, float(last["epoch"])), age
    except (OSError, ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):
        return 0, 0.0


def _seconds_since(time_text: str) -> float:
    try:
        return (datetime.now(timezone.utc) - datetime.fromisoformat(time_text)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


class SweepProgress:
    """Progress of the jobs of a sweep. States of finished jobs are read once.

    Args:
        sweep_folder: Folder of the sweep.
        entries: Returns the jobs; by default those of the plan, and the jobs that were refused.
    """

    def __init__(self, sweep_folder: Path, entries: Callable[[], Sequence[PlanEntry]] | None = None) -> None:
        self._folder, self._entries = sweep_folder, entries or (lambda: read_plan(sweep_folder))
        self._shows_refused = entries is None
        self._finished: dict[str, JobState] = {}
        self.states: list[JobState] = []
        self._num_running = 0

    def update(self) -> None:
        """Read the states of the jobs."""
        self._num_running = self.count("running")  # between two jobs a process has none
        self.states = []
        not_started = find_job_folders(self._folder / NOT_STARTED)
        folders = set(os.listdir(self._folder)) if self._folder.is_dir() else set()
        for entry in self._entries():
            state = self._finished.get(entry.fingerprint)
            if state is None:
                failure = not_started.get(entry.fingerprint)
                kind = tuple(word for word in entry.settings if not word.lstrip("+").startswith("seed="))
                if failure is None and entry.folder not in folders:  # no file to look for
                    state = JobState(entry.folder, "waiting", entry.epochs, cost=entry.cost, kind=kind)
                else:
                    state = read_state(self._folder / entry.folder, entry.epochs, entry.cost, failure, kind)
                if state.state == "finished":
                    self._finished[entry.fingerprint] = state
            self.states.append(state)
        if self._shows_refused:
            self.states += self._read_refused()

    def _read_refused(self) -> list[JobState]:
        """Return the jobs whose settings were refused, which no plan has."""
        planned = {entry.name.rpartition("-")[2] for entry in self.states}
        folders = sorted(path.parent for path in self._folder.glob(f"{NOT_STARTED}/*/status.json"))
        found = [read_state(folder, 0) for folder in folders if folder.name.rpartition("-")[2] not in planned]
        return [entry for entry in found if entry.state == "refused"]

    def count(self, *states: str) -> int:
        """Return the number of jobs in some states."""
        return sum(entry.state in states for entry in self.states)

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the remaining time; None if nothing is running or nothing is known yet.

        A job takes as long, per unit of its cost, as finished jobs that differ in the seed only. Without such a job
        those count that are running, then jobs of other kinds. As many jobs as run now share the rest in their order.
        """
        workers = max(self._num_running, self.count("running"))
        if not workers or not any(entry.paid_cost and entry.seconds for entry in self.states):
            return None
        waiting = sorted(self.states, key=lambda entry: entry.state != "running")
        ends = [0.0] * workers
        for entry in waiting:
            if entry.remaining_cost:
                heapq.heapreplace(ends, ends[0] + entry.seconds_left(self._seconds_per_cost(entry.kind)))
        return max(ends)

    def _seconds_per_cost(self, kind: tuple[str, ...]) -> float:
        """Return the time that a unit of cost takes."""
        known = [entry for entry in self.states if entry.paid_cost and entry.seconds]
        known = [entry for entry in known if entry.kind == kind] or known
        known = [entry for entry in known if entry.state == "finished"] or known
        return sum(entry.seconds for entry in known) / sum(entry.paid_cost for entry in known)

    def line(self) -> str:
        """Return the progress in a line: "job 5 of 24, 4 finished, about 12 min left"."""
        total, finished = len(self.states), self.count("finished")
        if finished == total:
            return "no jobs" if not total else f"all {total} jobs finished" if total != 1 else "the job has finished"
        started = total - self.count("waiting", "not run")
        parts = [f"job {started} of {total}" if started else format_count(total, "job"), f"{finished} finished"]
        failed = {name: self.count(name) for name in ENDED_EARLY}
        parts += [f"{number} {name}" for name, number in failed.items() if number]
        mine = call_name()
        elsewhere = sum(
            entry.state == "running" and (entry.status or {}).get("call") != mine for entry in self.states if mine
        )
        parts += [f"{elsewhere} running in another call"] if elsewhere else []
        seconds = self.seconds_left
        parts += [f"about {format_duration(seconds, is_rough=True)} left"] if seconds is not None else []
        return ", ".join(parts)


@contextmanager
def show_progress(progress: SweepProgress, print_line: Callable[[str], None]) -> Iterator[None]:
    """Show the progress while the body runs: one live line on a terminal, otherwise a line for each change.

    Without a change the line is printed every `REPEAT` seconds.

    Args:
        progress: The progress.
        print_line: Prints a line where there is no terminal.
    """
    ended = threading.Event()

    def show() -> None:
        from tqdm import tqdm

        on_terminal, shown, printed = sys.stderr.isatty(), (0, 0), time.monotonic()
        bar_format = "{bar:20} {desc} [{elapsed}]"
        with tqdm(total=1, bar_format=bar_format, leave=False, disable=not on_terminal) as bar:
            pause = INTERVAL
            while not ended.wait(pause):
                began = time.thread_time()
                progress.update()
                pause = max(INTERVAL, (time.thread_time() - began) / MAX_SHARE)
                counts = len(progress.states) - progress.count("waiting"), progress.count("finished")
                if on_terminal:
                    bar.total, bar.n = len(progress.states), counts[1]
                    bar.set_description_str(progress.line())
                elif counts != shown or time.monotonic() - printed >= REPEAT:
                    print_line(progress.line())
                    printed = time.monotonic()
                shown = counts

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
