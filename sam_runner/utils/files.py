"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sam_runner.utils.errors import TrainingError

_HERE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())  # in a wheel, in a checkout
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place.

    After a crash at any point `path` holds the old bytes or the new ones, never a part: the file is flushed to the disk
    before the rename, and the folder after it.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda handle: handle.write(text.encode()))


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None where there is no such file or it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    return hash_file(path, "sha256")


def hash_file(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes; `algorithm` is one of hashlib's."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """A disk that is full as one message; torch.save speaks of unexpected positions.

    Args:
        folder: Where the body writes.

    Raises:
        TrainingError: Where the body ended since nothing more could be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        causes = [entry for entry in (error, error.__context__, error.__cause__) if isinstance(entry, OSError)]
        number = next((entry.errno for entry in causes if entry.errno in FULL), None)
        if number is None:
            raise
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free / 2**20
        raise TrainingError(
            f"{os.strerror(number)}: {folder} ({free:.0f} MiB free)\n"
            "  earlier checkpoints are intact; make room, then the same command continues"
        ) from error
