"""Atomic file writes (temporary file, fsync, rename), JSON, checksums, and the error message of a full disk."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sam_runner.utils.errors import InputError, TrainingError

_PACKAGE = Path(__file__).resolve().parents[1]
# The folder of YAML options: inside the package in a wheel, beside it in a source checkout.
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())
SETTINGS_FILE = "config.yaml"  # of a run folder: all its settings
NORMALISATION_FILE = "normalisation.json"  # of a run folder: mean and std of its images
FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file beside `path`, then rename it to `path`.

    After a crash at any point `path` holds either the old content or the new one: the file is flushed to the disk
    before the rename, and the folder after it.

    Args:
        path: The file to create or replace.
        write: Writes the content to the file object that it receives.
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


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by `write_atomically`."""
    write_atomically(path, lambda handle: handle.write(content))


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be created or written to; nothing is created.

    Raises:
        InputError: With the existing folder that is the reason.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "cannot be written to" if existing.is_dir() else "is a file"
        raise InputError(f"folder {folder} cannot be created: {existing} {reason}\n  run the command in another folder")


def explain_missing_run(path: Path) -> str:
    """Return why a path is not a run folder, and on a second line which folder to give instead.

    That is the run that the path lies in (a checkpoint, say), or the latest run at most two levels below it.
    """
    reason = f"there is no {SETTINGS_FILE} in it" if os.path.exists(path) else "it does not exist"
    for outer in path.parents[:2]:
        if os.path.isfile(outer / SETTINGS_FILE):
            return f"{reason}\n  did you mean {outer}?"
    patterns = (f"*/{SETTINGS_FILE}", f"*/*/{SETTINGS_FILE}") if os.path.isdir(path) else ()
    runs = [file.parent for pattern in patterns for file in path.glob(pattern)]
    if runs:
        return f"{reason}\n  did you mean {max(runs, key=os.path.getmtime)}, the latest of its runs?"
    return f"{reason}\n  give the folder that sam-train printed; sam-status lists those in outputs/"


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A path whose bytes are not UTF-8 is a text with surrogates; their escape sequence is also JSON's.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`, or None if the file does not exist or does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_json_object(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """Return the JSON object in `path` without the entries of a wrong type.

    A file that a person or another program has changed then reads like a file without these entries.

    Args:
        path: The file. If it does not exist or holds anything else than an object, {} is returned.
        types: Types of entries by name: str, list, dict; int for a whole number and float for any finite number. Other
            entries are returned as they are.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if name not in types or _has_type(value, types[name])}


def keep_numbers(entry: Any) -> dict[str, float]:
    """Return the finite numbers in a JSON object by name; {} for another value."""
    values = entry.items() if isinstance(entry, dict) else ()
    return {str(name): value for name, value in values if _has_type(value, float)}


def _has_type(value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's content; `algorithm` is a name that `hashlib.new` accepts."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def explain_write_errors(folder: Path, continuation: Callable[[], str]) -> Iterator[None]:
    """Turn the errors of a full disk, and of files of `folder` that cannot be used, into one `TrainingError`.

    On a full disk `torch.save` raises a RuntimeError about an "unexpected pos", with the OSError as its context.

    Args:
        folder: The folder that the body writes to.
        continuation: Returns what the user does when the fault is mended, such as "repeat the command".

    Raises:
        TrainingError: If the body fails because the disk or the quota is full, the file exceeds the size limit, or a
            file of the folder cannot be read or written, for example because a folder has its name.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        causes = [entry for entry in (error, error.__context__, error.__cause__) if isinstance(entry, OSError)]
        number = next((entry.errno for entry in causes if entry.errno in FULL_DISK_ERRNOS), None)
        if number is not None:
            raise TrainingError(describe_full_disk(folder, number, continuation())) from error
        name = error.filename2 or error.filename if isinstance(error, OSError) else None
        if not isinstance(name, str) or folder not in Path(name).parents:
            raise
        raise TrainingError(
            f"{name} cannot be used: {error.strerror}\n  move it away, then {continuation()}"  # type: ignore[union-attr]
        ) from error


def describe_full_disk(folder: Path, number: int, continuation: str) -> str:
    """Return the message for a write below `folder` that failed with an error number of a full disk.

    Args:
        folder: The folder.
        number: The error number.
        continuation: What the user does when there is space again.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**20
    return (
        f"{os.strerror(number)}: {folder} ({free:.0f} MiB free)\n"
        f"  earlier checkpoints are intact: free some space, then {continuation}"
    )
