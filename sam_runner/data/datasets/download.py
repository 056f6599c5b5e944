"""Files from the network: whole, with the digest that was published, or not there at all."""

import fcntl
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from sam_runner.utils.errors import InputError
from sam_runner.utils.files import hash_file

log = logging.getLogger(__name__)
TIMEOUT = 4.0  # seconds without a byte: without a network the error comes within five
ALGORITHMS = {32: "md5", 64: "sha256"}  # by the length of the hex digest


def fetch(url: str, path: Path, digest: str, timeout: float = TIMEOUT) -> None:
    """Bring a file to `path`; another process that wants it waits for the same download.

    It comes as ``<path>.part``, which a later call goes on with, and is renamed when its digest is right.

    Args:
        url: Where it is.
        path: Where it goes; folders are made.
        digest: Hex sha256 that it must have, or md5 where only that was published; md5 tells damage, not intent.
        timeout: Seconds without an answer after which it is given up; where something had come, it is asked again for
            the rest.

    Raises:
        InputError: Where it cannot be fetched, is another file, or cannot be written.
    """
    part, algorithm = path.with_name(f"{path.name}.part"), ALGORITHMS[len(digest)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if path.is_file():
                part.unlink(missing_ok=True)  # somebody else's download, which we have waited for
                return
            _append_all(url, part, handle, timeout)
            if hash_file(part, algorithm) != digest:
                part.unlink()
                raise InputError(f"{url} is not the file that was published (its {algorithm} differs)\n  try again")
            part.rename(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise InputError(
            f"{url} could not be downloaded: {reason}\n"
            f"  put {path.name} ({algorithm} {digest}) into {path.parent} yourself,\n"
            "  or name a folder that has it with data.url=http://..."
        ) from error


def _append_all(url: str, part: Path, handle: IO[bytes], timeout: float) -> None:
    """Ask again where the bytes stopped coming, as long as there are more each time."""
    while True:
        have = part.stat().st_size
        try:
            return _append(url, part, handle, timeout)
        except TimeoutError:
            handle.flush()
            if part.stat().st_size == have:
                raise


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
