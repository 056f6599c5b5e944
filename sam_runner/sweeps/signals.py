"""The signals SIGTERM, SIGUSR1 and Ctrl-C end a sweep: the jobs save and end, and no further job starts."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sam_runner.runs.status import call_name, read_status
from sam_runner.sweeps.stop_flag import set_stop_flag
from sam_runner.utils.signals import EXIT_CODES, raise_for_signal

FORWARD_INTERVAL = 0.3  # seconds between two rounds of signals, so that jobs which started meanwhile get one too


@dataclass
class SweepStop:
    """Whether a signal has ended the sweep.

    Attributes:
        install_handlers: Function that installs the signal handlers. Call it again after a launcher has replaced them.
        code: Exit code that the signal implies, 0 if there was none.
    """

    install_handlers: Callable[[], None] = lambda: None
    code: int = 0


@contextmanager
def forward_signals(sweep_folder: Path) -> Iterator[SweepStop]:
    """Forward a signal that ends the sweep to the jobs in other processes of this machine, inside the body.

    Each job saves and ends, and no further job starts; the body continues until the launcher notices. A second Ctrl-C
    interrupts the body immediately. Jobs on other machines get the signal from their batch system.

    Args:
        sweep_folder: Folder of the sweep.

    Yields:
        Whether a signal has ended the sweep.
    """
    requested, finished = threading.Event(), threading.Event()

    def signal_jobs() -> None:
        requested.wait()
        while not finished.wait(FORWARD_INTERVAL):
            for path in sweep_folder.glob("*/status.json"):
                status = read_status(path.parent)
                is_local = status.get("call") == call_name() and status.get("host") == socket.gethostname()
                if is_local and status.get("status") == "running" and status.get("pid") != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(status["pid"]), signal.SIGTERM)

    def receive(number: int, _: FrameType | None) -> None:
        if stop.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.code = EXIT_CODES[signal.Signals(number)]
        set_stop_flag(sweep_folder, "signal")
        requested.set()

    def install_handlers() -> None:
        for number in previous:
            signal.signal(number, receive)

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    stop = SweepStop(install_handlers)
    install_handlers()
    threading.Thread(target=signal_jobs, daemon=True).start()
    try:
        yield stop
    finally:
        finished.set()
        requested.set()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stop_between_jobs() -> Iterator[None]:
    """Raise `RunInterrupt` for a signal between two jobs, inside the body; a run handles signals itself."""

    def receive(number: int, _: FrameType | None) -> None:
        raise_for_signal(number)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
