"""A disk that is full from a chosen write on, for the Python code of a process."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class FullDisk:
    """Counts what a process writes below a folder, and refuses it from a number on.

    Creating a file or a folder, a write, a flush to the disk and a rename count as one each. Deleting works.

    Args:
        folder: The folder that lies on the disk.
        capacity: Number of writes that succeed; None for all.
    """

    def __init__(self, folder: Path, capacity: int | None) -> None:
        self._folder, self._capacity, self.num_writes = os.path.realpath(folder), capacity, 0

    def take(self, path: Any) -> None:
        """Count a write to a path or an open file.

        Raises:
            OSError: If the disk is full.
        """
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not os.path.realpath(os.fsdecode(path)).startswith(f"{self._folder}/"):
            return
        self.num_writes += 1
        if self._capacity is not None and self.num_writes > self._capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    def install(self) -> None:
        """Replace the functions with which Python code writes."""
        original = io.open

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **keywords: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return original(file, mode, buffering, *arguments, **keywords)
            return self._open(file, mode, *arguments, **keywords)

        io.open = builtins.open = open_file
        os.mkdir = self._around(os.mkdir)
        os.replace = self._around(os.replace, place=1)
        os.rename = self._around(os.rename, place=1)
        os.fsync = self._around(os.fsync)

    def _around(self, function: Callable, place: int = 0) -> Callable:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.take(arguments[place])
            return function(*arguments, **keywords)

        return wrapped

    def _open(self, file: Any, mode: str, encoding: Any = None, errors: Any = None, newline: Any = None) -> Any:
        """Open a file that counts its writes."""
        if not os.path.exists(file):
            self.take(file)
        raw = _File(file, mode.replace("b", "").replace("t", ""), self)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


class _File(io.FileIO):
    def __init__(self, path: Any, mode: str, disk: FullDisk) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, data: Any) -> int:
        self._disk.take(self.name)
        return super().write(data)
