"""A sweep as a whole, in whatever processes its cells run: which cells start, what became of them, how it is ended.

All of it lies in the sweep's folder, where every process sees it. ``status.json`` of a run names the call that it
belongs to; a cell of which there is no run, since it was refused, has one below ``not_started/``; ``.stop`` says that
no further cell of a call starts.
"""

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from sam_runner.runs.folder import NOT_STARTED, job_folder
from sam_runner.runs.lock import is_locked
from sam_runner.runs.status import finished_duplicate, finished_result, read_status, this_call, write_status
from sam_runner.utils.errors import RunInterrupt
from sam_runner.utils.files import read_json, write_atomically, write_json

FLAG = ".stop"
PAUSE = 0.3  # seconds after which cells are report_exception, and those that have begun since
FAILURES = ("failed", "refused", "not run", "died", "running")  # none is running when the engine has ended
ENDED = {"preempted": 75, "interrupted": 130}


class Cell(NamedTuple):
    """What became of a cell: what was typed for it, the state of `status.json`, the error's text."""

    name: str
    state: str
    error: str


def record_failure(sweep_folder: Path, overrides: Sequence[str], state: str, error: str, text: str) -> None:
    """Note that a cell has no run; where it has one that noted its own end, what was typed for it is added there.

    Args:
        sweep_folder: Of the sweep.
        overrides: Of the cell.
        state: failed, refused, or not run.
        error: Why, as in `status.json` of a run.
        text: Why in full, for `run.log`.
    """
    cell = " ".join(overrides)
    own = job_folder(sweep_folder, overrides)
    status = read_status(own)
    if status.get("call") == this_call() and status.get("status") == "failed":
        write_json(own / "status.json", status | {"cell": cell})
        return
    folder = _place(sweep_folder, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "run.log", lambda handle: handle.write(f"{text}\n".encode()))
    write_status(folder, state, exit_code=1, error=error, cell=cell)


def clear_failure(sweep_folder: Path, overrides: Sequence[str]) -> None:
    """Forget what was noted of a cell when it was set aside."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_place(sweep_folder, overrides))
        (sweep_folder / NOT_STARTED).rmdir()


def _place(sweep_folder: Path, overrides: Sequence[str]) -> Path:
    return sweep_folder / NOT_STARTED / job_folder(sweep_folder, overrides).name


def stop(sweep_folder: Path, why: str) -> None:
    """Let no further cell of this call start, because of a "failure" or a "signal"."""
    sweep_folder.mkdir(parents=True, exist_ok=True)
    write_json(sweep_folder / FLAG, {"call": this_call(), "why": why})


def stopped(sweep_folder: Path) -> str:
    """Why no further cell of this call is to start, "" if they are."""
    flag = read_json(sweep_folder / FLAG)
    return str(flag.get("why")) if isinstance(flag, dict) and flag.get("call") == this_call() else ""


def cells(sweep_folder: Path) -> list[Cell]:
    """What became of the cells that this call ran or set aside, in the order of their names."""
    found = []
    for path in sorted([*sweep_folder.glob("*/status.json"), *sweep_folder.glob(f"{NOT_STARTED}/*/status.json")]):
        status = read_status(path.parent)
        if status.get("call") == this_call():
            state = str(status.get("status"))
            if state == "running" and is_locked(path.parent, str(status.get("host"))) is False:
                state = "died"
            found.append(Cell(str(status.get("cell", path.parent.name)), state, str(status.get("error", ""))))
    return found


def exit_code(found: Sequence[Cell]) -> int:
    """130 or 75 where cells were stopped by a signal, 1 where one failed, else 0."""
    stops = [ENDED[cell.state] for cell in found if cell.state in ENDED]
    return max(stops, default=int(any(cell.state in FAILURES for cell in found)))


def objective(sweep_folder: Path, overrides: Sequence[str], fingerprint: str) -> float | None:
    """What a search maximises: the accuracy on the held-out images at the end of the cell's run; None without one."""
    result = finished_result(job_folder(sweep_folder, overrides))
    if result is None:
        twin = finished_duplicate(sweep_folder, fingerprint)
        result = finished_result(twin) if twin else None
    value = (result or {}).get("final", {}).get("validation/accuracy")
    return None if value is None else float(value)


def tidy(sweep_folder: Path) -> None:
    """Remove what the engine leaves and nobody needs: the settings are in each run, and a dry run leaves nothing."""
    for name in (FLAG, "multirun.yaml"):
        (sweep_folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        os.removedirs(sweep_folder)


@dataclass
class Ended:
    """Whether the sweep was asked to end.

    Attributes:
        listen: Takes the signals that ask for it, also back from an engine that took them for itself.
        code: That follows; 0: nobody asked.
    """

    listen: Callable[[], None] = lambda: None
    code: int = 0


@contextmanager
def signals_for_all(sweep_folder: Path) -> Iterator[Ended]:
    """Inside the body, a signal that asks for the end goes to the cells that run in other processes of this machine.

    Each saves and ends, and no further one starts; the body goes on until its engine sees that. A second Ctrl-C ends
    it at once. Cells of other machines have a batch system that tells them.
    """
    asked, over = threading.Event(), threading.Event()

    def tell() -> None:
        asked.wait()
        while not over.wait(PAUSE):
            for path in sweep_folder.glob("*/status.json"):
                status = read_status(path.parent)
                here = status.get("call") == this_call() and status.get("host") == socket.gethostname()
                if here and status.get("status") == "running" and status.get("pid") != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(status["pid"]), signal.SIGTERM)

    def receive(number: int, _: FrameType | None) -> None:
        if ended.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        ended.code = 130 if number == signal.SIGINT else 75
        stop(sweep_folder, "signal")
        asked.set()

    def listen() -> None:
        for number in before:
            signal.signal(number, receive)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    ended = Ended(listen)
    listen()
    threading.Thread(target=tell, daemon=True).start()
    try:
        yield ended
    finally:
        over.set()
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_between_cells() -> Iterator[None]:
    """Inside the body, a signal that comes where no run is under way ends the sweep; a run takes them for itself."""

    def receive(number: int, _: FrameType | None) -> None:
        raise RunInterrupt(75, signal.Signals(number).name)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
