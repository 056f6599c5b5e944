"""Claims keep two processes from preparing the same job: a process holds the claim of the job that it trains.

A claim is a lock on one byte of the file ``.claims`` in the sweep's folder, at the position that the job's fingerprint
gives. It works between processes of one machine and, in a common folder, between machines. The operating system
releases it when the process ends. The lock of the run folder itself is taken only after the run has been built.

A process that is killed before its run begins leaves nothing in the run folder. Therefore it writes the file
``.begun-<fingerprint>`` before it prepares a job, and deletes it when the job has ended in any way. A file that
remains although nobody holds the claim says that the process was killed.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sam_runner.runs.status import call_name
from sam_runner.utils.files import read_json, write_json


@contextmanager
def hold_call(sweep_folder: Path) -> Iterator[None]:
    """Let `is_call_alive` tell other processes that a call of the command runs the sweep, while the body runs.

    A lock on the file ``.call`` says so, which the processes of several calls can hold at once.
    """
    with (sweep_folder / ".call").open("a+") as handle:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def is_call_alive(sweep_folder: Path) -> bool:
    """Return whether another process is known to be inside `hold_call`."""
    with contextlib.suppress(OSError), (sweep_folder / ".call").open("r+") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


@contextmanager
def claim(sweep_folder: Path, fingerprint: str) -> Iterator[bool]:
    """Hold the claim of a job inside the body; see `claim_all`. Yields whether the claim is held."""
    with claim_all(sweep_folder, [fingerprint]) as claimed:
        yield bool(claimed)


@contextmanager
def claim_all(sweep_folder: Path, fingerprints: Sequence[str]) -> Iterator[set[str]]:
    """Hold the claims of jobs inside the body. A process can be in one such body at a time.

    Args:
        sweep_folder: Folder of the sweep.
        fingerprints: Fingerprints of the jobs' settings, hexadecimal digits.

    Yields:
        The fingerprints whose claims are held; another process holds the other ones.
    """
    claimed = set()
    with (sweep_folder / ".claims").open("a") as handle:
        for fingerprint in fingerprints:
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(fingerprint, 16))
                claimed.add(fingerprint)
        yield claimed


def begun_file(sweep_folder: Path, fingerprint: str) -> Path:
    """Return the path of the file that exists while a process trains a job."""
    return sweep_folder / f".begun-{fingerprint}"


def begun_in_this_call(sweep_folder: Path, fingerprint: str) -> bool:
    """Return whether a process of this call has begun a job and has not ended it, so far or because it was killed."""
    mark = read_json(begun_file(sweep_folder, fingerprint))
    return isinstance(mark, dict) and mark.get("call") == call_name()


@contextmanager
def mark_begun(sweep_folder: Path, fingerprint: str) -> Iterator[None]:
    """Keep the file of `begun_file`, with the name of this call, while the body runs."""
    path = begun_file(sweep_folder, fingerprint)
    write_json(path, {"call": call_name()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
