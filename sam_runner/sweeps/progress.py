"""How far a sweep or a run is, read from its files: the line that a sweep shows, and what sam-status prints."""

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
from sam_runner.utils.console import format_count

NO_RESULT = ("failed", "refused", "not run")  # states of a job that is not continued in its call
ENDED_EARLY = ("failed", "refused", "died", "interrupted", "preempted", "not run")
INTERVAL = 1.0  # seconds between two looks at the files
MAX_SHARE = 0.05  # of the time that looking takes: a sweep of ten thousand jobs is read less often
TAIL = 4096  # bytes at the end of metrics.jsonl that hold its last row


@dataclass(frozen=True)
class JobState:
    """State of a job, or of a run.

    Attributes:
        name: Name of the run folder.
        state: "waiting", "running", "finished", "died", or another ``status`` of status.json.
        epochs: Epochs of the run.
        done: Epochs that are done.
        cost: Duration of the run relative to other jobs of the sweep, in any unit.
        seconds: Duration of the last call that has trained the run; 0 if it is not known.
        from_epoch: Epochs that were done when that call began.
        status: Content of status.json.
    """

    name: str
    state: str
    epochs: int
    done: int = 0
    cost: float = 1.0
    seconds: float = 0.0
    from_epoch: int = 0
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


def read_state(folder: Path, epochs: int, cost: float = 1.0, not_started: Path | None = None) -> JobState:
    """Read the state of a run.

    Args:
        folder: The run folder, which may not exist yet.
        epochs: Epochs of the run.
        cost: Duration relative to other jobs of the sweep.
        not_started: Folder with the status of a job that has no run, None for none.
    """
    status = read_status(folder)
    if not status and not_started is not None:
        status = read_status(not_started)
    state, from_epoch = str(status.get("status", "waiting")), int(status.get("from_epoch", 0))
    seconds, done = float(status.get("seconds", 0)), from_epoch
    if read_finished_result(folder) is not None:
        state, done = "finished", epochs
    elif state == "running":
        done = max(from_epoch, _read_epoch(folder))
        seconds = _seconds_since(str(status.get("time")))
        if is_locked(folder, str(status.get("host"))) is False:
            state = "died"
    elif state not in ("waiting", *NO_RESULT):  # it continues from its checkpoint
        done = max(from_epoch, _read_epoch(folder))
    return JobState(folder.name, state, epochs, min(done, epochs), cost, seconds, from_epoch, status)


def _read_epoch(folder: Path) -> int:
    """Return the number of epochs that are done according to the last row of metrics.jsonl."""
    try:
        with (folder / "metrics.jsonl").open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - TAIL))
            row = json.loads(handle.read().splitlines()[-1])
        return int(row["epoch"]) - ("test/nll" not in row)  # without an evaluation the epoch may not be over
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return 0


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

    def update(self) -> None:
        """Read the states of the jobs."""
        self.states = []
        not_started = find_job_folders(self._folder / NOT_STARTED)
        for entry in self._entries():
            state = self._finished.get(entry.fingerprint)
            if state is None:
                failure = not_started.get(entry.fingerprint)
                state = read_state(self._folder / entry.folder, entry.epochs, entry.cost, failure)
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
        """Estimate of the remaining time; None if nothing is running or nothing is known yet."""
        running = self.count("running")
        paid = [(entry.paid_cost, entry.seconds) for entry in self.states if entry.paid_cost and entry.seconds]
        if not running or not paid:
            return None
        cost_per_second = sum(cost for cost, _ in paid) / sum(seconds for _, seconds in paid)
        return sum(entry.remaining_cost for entry in self.states) / cost_per_second / running

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
        parts += [f"about {format_duration(seconds)} left"] if seconds is not None else []
        return ", ".join(parts)


def format_duration(seconds: float) -> str:
    """Return a duration with two digits or so: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


@contextmanager
def show_progress(progress: SweepProgress, print_line: Callable[[str], None]) -> Iterator[None]:
    """Show the progress while the body runs: one live line on a terminal, otherwise a line for each change.

    Args:
        progress: The progress.
        print_line: Prints a line where there is no terminal.
    """
    ended = threading.Event()

    def show() -> None:
        from tqdm import tqdm

        on_terminal, shown = sys.stderr.isatty(), (0, 0)
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
                elif counts != shown:
                    print_line(progress.line())
                shown = counts

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
