"""Results on disk beside a run: a stopped command continues from them, a finished command prints them again.

A file of answers holds one entry for each combination of settings, so no answer replaces another one. Hessian-vector
products, which take most of the time, are stored until the answer that needs them is finished. Only one process at a
time computes the answers of a file, under `hold_lock`.
"""

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json, write_json

log = logging.getLogger("sam_runner")
KEY_BYTES = 16


def require_folder(folder: Path) -> None:
    """Create a folder of results.

    Raises:
        InputError: If it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be created: {error.strerror}\n  give another folder: --out FOLDER"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written to\n  give the folder write permission")


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return 8 hex digits for a combination of settings, for file names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Wait until no other process computes the results of a file, then keep others out inside the body.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        path: The file of results. The lock is a hidden file beside it.
    """
    with path.with_name(f".{path.name}.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            log.info("%s: waiting for process %s, which writes this file", path, handle.read(20).strip())
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        for leftover in path.parent.glob(f"{path.name}.tmp.*"):
            leftover.unlink()  # its process was killed: it would hold the lock otherwise
        yield


class Answer:
    """One entry of a file of answers. Hold the lock of the file from reading to the last `save`.

    Args:
        path: The JSON file.
        settings: What the answer depends on, of JSON types: options of the command and the digest of the checkpoint.

    Attributes:
        values: Results so far, of JSON types; `save` writes them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        entry = next((entry for entry in self._read() if entry["settings"] == self.settings), None)
        self.values: dict[str, Any] = {} if entry is None else dict(entry["values"])

    def save(self, **values: Any) -> None:
        """Add values and write the file; the answers to other settings stay in it."""
        self.values |= values
        entries = [entry for entry in self._read() if entry["settings"] != self.settings]
        write_json(self.path, {"answers": [*entries, {"settings": self.settings, "values": self.values}]})

    def _read(self) -> list[dict[str, Any]]:
        content = read_json(self.path)
        if not self.path.is_file():
            return []
        entries = content.get("answers") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
            raise InputError(f"{self.path} is not a file of answers\n  move it away")
        return entries


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), dict) for key in ("settings", "values"))


class StoredProducts:
    """Products A v that are appended to a file, and read from it if the same vector comes again.

    Algorithms that are deterministic ask for the same vectors when they are repeated. So a stopped computation is
    simply repeated: it needs no state of its own and gives the same bits.

    Args:
        path: The file; it is created at the first product. Records that are damaged or incomplete are ignored.
        products: Maps vectors (n,) to their products.
        like: A vector (n,) with the dtype and device of all vectors.
        after: Called with the number of products after each call, those from the file included.
    """

    def __init__(
        self,
        path: Path,
        products: Callable[[Sequence[Tensor]], list[Tensor]],
        like: Tensor,
        after: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.path, self._products, self._like, self._after = path, products, like, after
        self._size = like.numel() * like.element_size()
        self._record = KEY_BYTES + 4 + self._size
        self._places = dict(self._scan())

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the products of vectors, (n,) each."""
        keys = [hashlib.blake2b(_bytes(vector), digest_size=KEY_BYTES).digest() for vector in vectors]
        missing = [number for number, key in enumerate(keys) if key not in self._places]
        if missing:
            found = self._products([vectors[number] for number in missing])
            for number, product in zip(missing, found, strict=True):
                self._append(keys[number], _bytes(product))
        results = [self._read(key) for key in keys]
        self._after(len(vectors))
        return results

    def one(self, vector: Tensor) -> Tensor:
        """Return the product of one vector, (n,)."""
        return self([vector])[0]

    def delete(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)
        self._places.clear()

    def _scan(self) -> Iterator[tuple[bytes, int]]:
        """Yield (key, offset of the product) of every intact record, and cut off what follows the last one."""
        if not self.path.is_file():
            return
        with self.path.open("r+b") as handle:
            offset, end = 0, handle.seek(0, os.SEEK_END)
            while offset + self._record <= end:
                handle.seek(offset)
                key, checksum = handle.read(KEY_BYTES), handle.read(4)
                if zlib.crc32(handle.read(self._size)).to_bytes(4, "big") != checksum:
                    break
                yield key, offset + KEY_BYTES + 4
                offset += self._record
            handle.truncate(offset)

    def _append(self, key: bytes, content: bytes) -> None:
        with self.path.open("ab") as handle:
            self._places[key] = handle.tell() + KEY_BYTES + 4
            handle.write(key + zlib.crc32(content).to_bytes(4, "big") + content)

    def _read(self, key: bytes) -> Tensor:
        with self.path.open("rb") as handle:
            handle.seek(self._places[key])
            content = bytearray(handle.read(self._size))
        return torch.frombuffer(content, dtype=self._like.dtype).to(self._like.device)


def _bytes(vector: Tensor) -> bytes:
    array: np.ndarray[Any, Any] = vector.detach().contiguous().cpu().numpy()
    return array.tobytes()
