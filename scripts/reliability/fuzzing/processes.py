"""Calls of the program's commands in forked processes, and the rules that every answer has to keep."""

import atexit
import contextlib
import gc
import importlib
import multiprocessing.util
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from sam_runner.config.hydra.compose import compose_experiment

ACCEPTED = (0, 1, 2, 75, 130)  # exit codes that docs/runs.md explains
MAX_LINES = 20  # lines of a message
MEMORY = 8 * 2**30  # bytes that a process may add to what it has
GRACE = 30.0  # seconds between SIGTERM and the end
CONNECT = socket.socket.connect
Patch = Callable[[], None]
Entry = Callable[[], int]


@dataclass(frozen=True)
class Answer:
    """How a call ended.

    Attributes:
        code: Exit code, negative for a signal, None if it did not end within `GRACE` of SIGTERM.
        stdout: What it printed.
        stderr: Its messages.
        was_stopped: Whether it ran too long and got SIGTERM.
        left_processes: Whether a process of its group still runs.
    """

    code: int | None
    stdout: str
    stderr: str
    was_stopped: bool = False
    left_processes: bool = False

    def find_faults(self, *, num_errors: Sequence[int] = (1,)) -> list[str]:
        """Return the rules that the answer breaks.

        Args:
            num_errors: Accepted numbers of lines that begin with "error:" if the call failed.
        """
        faults = []
        if self.code is None:
            faults.append("hangs: not even SIGTERM ends it")
        elif self.code < 0 and not (self.was_stopped and self.code == -signal.SIGTERM):
            faults.append(f"ended by {signal.Signals(-self.code).name}")
        elif self.code >= 0 and self.code not in ACCEPTED:
            faults.append(f"exit code {self.code}")
        if "Traceback (most recent call last)" in self.stderr + self.stdout:
            faults.append("traceback")
        elif self.code in (1, 2) and not self.was_stopped:
            lines = self.stderr.splitlines()
            if sum(line.startswith("error:") for line in lines) not in num_errors:
                faults.append("not one message that begins with error:")
            if len(lines) > MAX_LINES * max(num_errors):
                faults.append(f"{len(lines)} lines of messages")
        if self.left_processes:
            faults.append("left a process behind")
        return faults


def preload() -> None:
    """Import what the commands import, once for all forks, and keep the collector from copying its pages."""
    for name in ("runs.start", "commands.sweep", "config.hydra.guard", "config.hydra.launchers", "reports.report"):
        importlib.import_module(f"sam_runner.{name}")
    for name in ("hydra", "hydra.main", "torch.utils.tensorboard", "PIL.Image", "matplotlib.pyplot"):
        importlib.import_module(name)
    compose_experiment([])
    GlobalHydra.instance().clear()
    gc.freeze()


def call(
    entry: Entry, words: Sequence[str], folder: Path, log: Path, *, seconds: float = 60.0, patch: Patch | None = None
) -> Answer:
    """Run a command in a fork of this process, in `folder` and without a network.

    Args:
        entry: ``main`` of the command.
        words: Its arguments.
        folder: Working folder and home folder.
        log: Beginning of the names of two files with its output; they lie outside `folder`.
        seconds: After this time it gets SIGTERM, and SIGKILL after another `GRACE`.
        patch: Called in the new process first.
    """
    return finish(start(entry, words, folder, log, patch), log, seconds)


def start(entry: Entry, words: Sequence[str], folder: Path, log: Path, patch: Patch | None = None) -> int:
    """Start a command as `call` does; return the process, which leads a group of its own."""
    child = os.fork()
    if not child:
        _run(entry, words, folder, log, patch)
    return child


def finish(child: int, log: Path, seconds: float) -> Answer:
    """Wait until a command of `start` ends, or stop it after some seconds; see `call`."""
    code = wait(child, seconds)
    was_stopped = code is None
    if was_stopped:
        os.kill(child, signal.SIGTERM)
        code = wait(child, GRACE)
    left = code is not None and group_lives(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    texts = [Path(f"{log}.{name}").read_text(errors="replace") for name in ("out", "err")]
    return Answer(code, *texts, was_stopped, left)


def _run(entry: Entry, words: Sequence[str], folder: Path, log: Path, patch: Patch | None) -> None:
    """Run a command in this process, which ends with it."""
    code, leave = 99, os._exit
    try:
        os.setsid()
        atexit._clear()  # the functions of the process that makes the trials, which remove its folders
        atexit.register(multiprocessing.util._exit_function)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin = open(os.devnull)  # noqa: SIM115 - lives as long as the process
        os.chdir(folder)
        os.environ["HOME"] = str(folder)
        sys.path[:] = [entry for entry in sys.path if entry]  # the folder of a trial is on no path
        socket.socket.connect = _refuse_connection
        with open("/proc/self/statm") as handle:
            size = int(handle.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if patch is not None:
            patch()
        sys.argv = [entry.__module__.rpartition(".")[2], *words]
        code = entry()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)
        leave(code)


def _refuse_connection(self: socket.socket, address: object) -> None:
    """Connect to another process of this machine, as data workers do; there is no network in a trial."""
    if self.family != socket.AF_UNIX:
        raise OSError("no network in a trial")
    CONNECT(self, address)


def wait(child: int, seconds: float) -> int | None:
    """Wait for a process; return its exit code, negative for a signal, or None if it still runs after `seconds`."""
    end, pause = time.monotonic() + seconds, 0.002
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.05, 1.2 * pause)
    return None


def group_lives(group: int, seconds: float = 5.0) -> bool:
    """Return whether a process of the group still runs after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    return True
