"""A folder of results that take long to compute from files: decoded images, lists and checks of files (``data.cache``).

An entry ``<name>-<key>.pt`` is a `torch.save` of tensors and plain types. Its manifest is written last, as that of a
checkpoint. An entry whose manifest does not match is ignored and written again. Two processes that write one entry at
the same time write the same bytes, and each file is renamed when it is complete.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sam_runner.data.files.jpeg import describe_decoders
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically
from sam_runner.utils.manifest import check_manifest, write_manifest
from sam_runner.utils.safe_load import load_tensors

log = logging.getLogger("sam_runner")


class FileCache:
    """The entries in one folder.

    Args:
        folder: The folder; it is created when the first entry is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, key: Iterable[Any]) -> Path:
        """Return the path of an entry; `key` holds JSON values, all that the content depends on."""
        digest = hashlib.sha256()
        for value in key:
            digest.update(json.dumps(value).encode())
        return self._folder / f"{name}-{digest.hexdigest()[:32]}.pt"

    def read(self, path: Path) -> dict[str, Any] | None:
        """Return the content of an entry; None if there is none, or it is damaged, which is logged."""
        manifest = path.with_suffix(".json")
        if not manifest.is_file():
            return None
        fault = check_manifest(manifest)
        if fault is None:
            try:
                content: dict[str, Any] = load_tensors(path)
                return content
            except InputError as error:
                fault = str(error).splitlines()[0]
        log.warning("data.cache: %s is ignored: %s", path, fault)
        return None

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Write an entry; a folder that cannot be written to is logged and changes nothing else."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda handle: torch.save(content, handle))
            write_manifest(path)
        except (OSError, RuntimeError) as error:  # torch.save raises a RuntimeError on a full disk
            log.warning("data.cache: %s cannot be written: %s", path, error)


def files_key(root: Path, paths: Iterable[str]) -> Iterator[Any]:
    """Yield what the pixels of files depend on: the decoders, and names, sizes and times of the files."""
    yield [version("torch"), describe_decoders()]
    yield str(root.resolve())
    for path in paths:
        try:
            facts = os.stat(os.path.join(root, path))
        except OSError:  # it is reported when it is decoded
            yield [path]
        else:
            yield [path, facts.st_size, facts.st_mtime_ns]


def choose_cache(setting: bool | str) -> FileCache | None:
    """Return the cache that ``data.cache`` names: none, that of the user, or one in a folder."""
    if setting is False:
        return None
    if setting is True:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return FileCache(Path(base) / "sam_runner")
    return FileCache(Path(os.path.expanduser(setting)))
