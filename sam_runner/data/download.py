"""Files from the network: whole, with the published sha256, or not there at all."""

import fcntl
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from sam_runner.errors import InputError
from sam_runner.files import sha256 as digest_of

log = logging.getLogger(__name__)
TIMEOUT = 20.0  # seconds without a byte


def fetch(url: str, path: Path, sha256: str, timeout: float = TIMEOUT) -> None:
    """Bring a file to `path`; another process that wants it waits for the same download.

    It comes as ``<path>.part``, which a later call goes on with, and is renamed when its digest is right.

    Args:
        url: Where it is.
        path: Where it goes; folders are made.
        sha256: Hex digest that it must have.
        timeout: Seconds without an answer after which it is given up.

    Raises:
        InputError: Where it cannot be fetched, is another file, or cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if path.is_file():
                part.unlink(missing_ok=True)  # somebody else's download, which we have waited for
                return
            _append(url, part, handle, timeout)
            if digest_of(part) != sha256:
                part.unlink()
                raise InputError(f"{url} is not the file that was published (its sha256 differs)\n  try again")
            part.rename(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise InputError(
            f"{url} could not be downloaded to {path.parent}: {reason}\n  fetch it yourself, and set data.root"
        ) from error


def _append(url: str, part: Path, handle: IO[bytes], timeout: float) -> None:
    """Go on with what is there, where the server can."""
    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    log.info("downloading %s to %s", url, part.parent)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            if have and answer.status != 206:  # the whole file again
                handle.truncate(0)
            expected, received = answer.headers.get("Content-Length"), 0
            while block := answer.read(1 << 20):
                received += handle.write(block)
            if expected is not None and received < int(expected):
                handle.flush()
                raise OSError(
                    f"the connection broke off after {received} of {expected} bytes; the same command goes on"
                )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send
            raise
    handle.flush()
