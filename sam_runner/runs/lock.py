"""The lock of a run folder: only one process at a time writes into the folder.

The operating system releases the lock when the process ends, so nothing remains to be cleaned up after a crash.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sam_runner.utils.errors import FolderInUseError, InputError

PATIENCE = 0.5  # seconds until a folder whose lock another process holds is in use
LOCK_FILES: set[IO[str]] = set()  # open lock files of this process
os.register_at_fork(after_in_child=lambda: [handle.close() for handle in LOCK_FILES])


@contextmanager
def _close_in_forks(handle: IO[str]) -> Iterator[None]:
    """Close the lock file in forked processes inside the body: data workers may outlive a killed run by seconds."""
    LOCK_FILES.add(handle)
    try:
        yield
    finally:
        LOCK_FILES.discard(handle)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside the body.

    Raises:
        FolderInUseError: If another process holds the lock for `PATIENCE`. `is_locked` holds it for a moment.
        InputError: If the folder cannot be written to.
    """
    try:
        handle = (folder / ".lock").open("a+")
    except OSError as error:
        raise InputError(
            f"run folder {folder} cannot be written to: {error.strerror}\n"
            "  give the folder write permission, or give another folder: run_dir=FOLDER; for a sweep sweep_name=NAME"
        ) from error
    with handle, _close_in_forks(handle):
        if not _lock(handle):
            handle.seek(0)
            owner = handle.read(200).strip() or "another process"
            raise FolderInUseError(f"{folder} is in use by {owner}\n  wait until it ends, or give another run_dir")
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        for leftover in [*folder.glob("*.tmp.*"), *(folder / "checkpoints").glob("*.tmp.*")]:
            leftover.unlink()  # its process died: it would hold the lock otherwise
        yield


def _lock(handle: IO[str]) -> bool:
    """Lock a file, trying again for `PATIENCE`. Returns whether the lock is held."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(PATIENCE / 20)
        else:
            return True


def is_free(folder: Path) -> bool:
    """Return whether no process is known to hold the lock of a run folder."""
    return is_locked(folder, socket.gethostname()) is not True


def is_locked(folder: Path, host: str) -> bool | None:
    """Return whether a process holds the lock of a folder, or None if this machine cannot know.

    Args:
        folder: A run folder whose status is "running".
        host: Name of the machine that the run started on.
    """
    if host != socket.gethostname():
        return None
    try:
        with (folder / ".lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock file, or the file system has no locks
        return None
    return False
