"""Claims keep two processes from preparing the same job: a process holds the claim of the job that it trains.

A claim is a lock on one byte of the file ``.claims`` in the sweep's folder, at the position that the job's fingerprint
gives. It works between processes of one machine and, in a common folder, between machines. The operating system
releases it when the process ends. The lock of the run folder itself is taken only after the run has been built.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(sweep_folder: Path, fingerprint: str) -> Iterator[bool]:
    """Hold the claim of a job inside the body. A process can hold one claim at a time.

    Args:
        sweep_folder: Folder of the sweep.
        fingerprint: Fingerprint of the job's settings, hexadecimal digits.

    Yields:
        Whether the claim is held; False if another process holds it.
    """
    with (sweep_folder / ".claims").open("a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(fingerprint, 16))
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True
