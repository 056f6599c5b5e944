"""Signals that end a run: it completes its step, saves a checkpoint and exits; a second Ctrl-C ends it immediately.

SIGTERM comes from Slurm, Kubernetes and ``kill``, SIGUSR1 from Slurm's ``--signal``. The exit code is 75 for both, so
that a batch system runs the job again. submitit uses SIGUSR2 to put a job back into the queue; it is caught only if
submitit has installed a handler. Outside a run the default actions apply, since there is nothing to save.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType

from sam_runner.utils.errors import INTERRUPTED, PREEMPTED, RunInterrupt

EXIT_CODES = {
    signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED, signal.SIGUSR2: PREEMPTED, signal.SIGINT: INTERRUPTED,
}  # fmt: skip


class StopRequest:
    """The signal that asks the run to stop, if one was received."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Store a signal; a Ctrl-C after another signal raises KeyboardInterrupt."""
        is_repeated = self._signal is not None
        self._signal = signal.Signals(number)
        if is_repeated and number == signal.SIGINT:
            raise KeyboardInterrupt

    @property
    def signal_number(self) -> int:
        """Number of the received signal; 0 if there was none."""
        return self._signal or 0


_of_main_thread: StopRequest | None = None


def raise_for_signal(number: int) -> None:
    """Raise `RunInterrupt` if `number` is the number of a signal; 0 means that there was none."""
    if number:
        received = signal.Signals(number)
        raise RunInterrupt(EXIT_CODES[received], received.name)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Record stop signals inside the body instead of ending the process.

    Only the main thread receives signals. The body of another thread gets the request of the main thread's body, or one
    that never stops it.
    """
    global _of_main_thread
    if threading.current_thread() is not threading.main_thread():
        yield _of_main_thread or StopRequest()
        return
    request = StopRequest()
    outer, _of_main_thread = _of_main_thread, request
    caught = [number for number in EXIT_CODES if number != signal.SIGUSR2 or callable(signal.getsignal(number))]
    previous = {number: signal.signal(number, request.receive) for number in caught}
    try:
        yield request
    finally:
        _of_main_thread = outer
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_stop_signals(_: int) -> None:
    """Ignore stop signals in a data worker (a ``worker_init_fn``).

    A signal to the whole process group is meant for the run, which ends its workers itself.
    """
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*EXIT_CODES, signal.SIGCHLD})


def kill_data_workers() -> None:
    """Kill the data workers that are still alive at exit.

    multiprocessing would send SIGTERM, which the workers ignore, and then wait for them.
    """
    for process in active_children():
        if process.daemon:
            process.kill()


@contextmanager
def block_stop_signals(*others: signal.Signals) -> Iterator[None]:
    """Deliver stop signals and `others` only after the body; processes started inside it begin with them blocked."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {*EXIT_CODES, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def keep_handler(number: signal.Signals) -> Iterator[None]:
    """Undo a change that the body makes to the handler of a signal. Only the main thread can change handlers."""
    previous = signal.getsignal(number)
    try:
        yield
    finally:
        if signal.getsignal(number) is not previous:
            signal.signal(number, previous)
