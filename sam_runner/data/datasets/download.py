"""Download files completely and with their published digest, or not at all."""

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
TIMEOUT = 4.0  # seconds without a byte; without a network the error is raised within five seconds
ALGORITHMS = {32: "md5", 64: "sha256"}  # by number of hex digits


def download_file(url: str, path: Path, digest: str, timeout: float = TIMEOUT) -> None:
    """Download a file to `path`; other processes that need the same file wait for this download.

    The bytes go to ``<path>.part``, which a later call resumes. The file is renamed once its digest matches.

    Args:
        url: Address of the file.
        path: Destination; its folders are created.
        digest: Published hex sha256, or md5 if no sha256 was published; md5 detects damage but not manipulation.
        timeout: Seconds without a byte after which the missing bytes are requested again, or after which the download
            fails if the request brought no byte.

    Raises:
        InputError: If the file cannot be downloaded or written, or its digest differs.
    """
    part, algorithm = path.with_name(f"{path.name}.part"), ALGORITHMS[len(digest)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if path.is_file():
                part.unlink(missing_ok=True)  # another process has finished the download
                return
            _append_all(url, part, handle, timeout)
            if hash_file(part, algorithm) != digest:
                part.unlink()
                raise InputError(f"{url} is not the published file (its {algorithm} differs)\n  try again")
            part.rename(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if part.is_file() and not part.stat().st_size:
            part.unlink()
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise InputError(
            f"{url} could not be downloaded: {reason}\n"
            f"  put {path.name} ({algorithm} {digest}) into {path.parent},\n"
            "  or set data.url=http://... to a mirror"
        ) from error


def _append_all(url: str, part: Path, handle: IO[bytes], timeout: float) -> None:
    """Request the file until it is complete; raise TimeoutError if a request brings no new byte."""
    while True:
        num_bytes = part.stat().st_size
        try:
            return _append(url, part, handle, timeout)
        except TimeoutError:
            handle.flush()
            if part.stat().st_size == num_bytes:
                raise


def _append(url: str, part: Path, handle: IO[bytes], timeout: float) -> None:
    """Request the missing bytes, or the whole file if the server does not support ranges."""
    num_bytes = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_bytes}-"} if num_bytes else {})
    log.info("downloading %s to %s", url, part.parent)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            if num_bytes and answer.status != 206:  # the server sends the whole file
                handle.truncate(0)
            expected, received = answer.headers.get("Content-Length"), 0
            while block := answer.read(1 << 20):
                received += handle.write(block)
            if expected is not None and received < int(expected):
                handle.flush()
                raise OSError(
                    f"the connection broke after {received} of {expected} bytes; run the same command to resume"
                )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part is already complete
            raise
    handle.flush()
