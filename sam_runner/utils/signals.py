"""Signals that ask a run to end: it finishes its step, saves and leaves; a second Ctrl-C ends it at once.

SIGTERM comes from Slurm, Kubernetes and ``kill``, SIGUSR1 from Slurm's ``--signal``; both end with code 75, at which a
batch system tries again. SIGUSR2 is submitit's, which queues the job again: noted only where somebody waits for it.
Before a run is under way the usual actions hold: there is nothing to save.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType

from sam_runner.utils.errors import RunInterrupt

CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGUSR2: 75, signal.SIGINT: 130}


class StopRequest:
    """Whether the end was asked for."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Take note of a signal; a Ctrl-C after another signal interrupts at once."""
        again = self._signal is not None
        self._signal = signal.Signals(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt

    @property
    def signal_number(self) -> int:
        """The signal that has come; 0: none."""
        return self._signal or 0


def raise_for_signal(number: int) -> None:
    """Raise `RunInterrupt` for a signal; 0 is none."""
    if number:
        found = signal.Signals(number)
        raise RunInterrupt(CODES[found], found.name)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Signals are noted inside the body; outside of the main thread none arrive."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    noted = [number for number in CODES if number != signal.SIGUSR2 or callable(signal.getsignal(number))]
    before = {number: signal.signal(number, request.receive) for number in noted}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals(_: int) -> None:
    """For processes that load data: a signal to the whole group is for the run, which ends them itself."""
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CODES)


def kill_data_workers() -> None:
    """At the exit: end what still loads data. multiprocessing would send SIGTERM, which they ignore, and wait."""
    for process in active_children():
        if process.daemon:
            process.kill()


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Signals wait until the end of the body; processes that it starts begin with them held back too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
