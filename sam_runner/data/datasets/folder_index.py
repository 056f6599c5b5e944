"""The list of a folder's image files, kept in ``data.cache``: a folder of a million files is listed once.

An entry holds the time of the last change of every folder below the root. Adding, removing or renaming a file changes
the time of its folder, so an entry is valid while these times stay the same. A folder with links, or with files whose
content decides whether they are images, is not kept, because its list can change without a new time.
"""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sam_runner.data.datasets.folder_layout import NEVER_IMAGES, Layout, LeftOut, Part, find_layout, suffix_of
from sam_runner.data.files.decode import SUFFIXES
from sam_runner.data.files.file_cache import FileCache, choose_cache

log = logging.getLogger("sam_runner")
INDEX_FORMAT = 2  # to be raised when the same files give another layout
KNOWN_SUFFIXES = SUFFIXES | NEVER_IMAGES
MIN_AGE_NS = 2_000_000_000  # a folder that has just changed can change again without a new time


def find_layout_once(root: str, cache: bool | str) -> Layout:
    """Return what `find_layout` does, from the cache if no folder has changed.

    Args:
        root: Path of the folder.
        cache: Value of ``data.cache``.

    Raises:
        InputError: See `find_layout`.
    """
    store = choose_cache(cache)
    if store is None or not os.path.isdir(root):
        return find_layout(root)
    return _read(store, root) or _list_and_write(store, root)


def _entry(store: FileCache, root: str) -> Any:
    return store.path("list", [INDEX_FORMAT, root])


def _read(store: FileCache, root: str) -> Layout | None:
    content = store.read(_entry(store, root))
    if content is None:
        return None
    try:
        folders, times = _split(content["folders"]), content["times"].tolist()
        if any(_time_of(folder) != changed for folder, changed in zip(folders, times, strict=True)):
            return None
        parts = {
            name: Part(part["folder"], _split(part["paths"]) if len(part["labels"]) else [], part["labels"].tolist())
            for name, part in content["parts"].items()
        }
        left_out = LeftOut(content["left_out"], content["examples"])
        classes, suffixes = tuple(content["classes"]), dict(content["suffixes"])
        layout = Layout(classes, parts["train"], parts.get("validation"), parts.get("test"), left_out, suffixes)
    except (KeyError, TypeError, ValueError, AttributeError):  # not written by this program
        return None
    log.info("list of %s files from data.cache", f"{sum(len(part.paths) for part in layout.parts):,}")
    return layout


def _list_and_write(store: FileCache, root: str) -> Layout:
    times = _folder_times(root)
    layout = find_layout(root)
    if times is not None:
        parts = {"train": layout.train, "validation": layout.validation, "test": layout.test}
        content = {
            "folders": _join(list(times)),
            "times": torch.tensor(list(times.values())),
            "classes": list(layout.classes),
            "parts": {
                name: {"folder": part.folder, "paths": _join(part.paths), "labels": torch.tensor(part.labels)}
                for name, part in parts.items()
                if part is not None
            },
            "left_out": layout.left_out.counts,
            "examples": layout.left_out.examples,
            "suffixes": layout.suffixes,
        }
        store.write(_entry(store, root), content)
    return layout


def _folder_times(root: str) -> dict[str, int] | None:
    """Return the time of the last change of each folder from `root` down; None if the list can change without them."""
    times: dict[str, int] = {}
    now, stack = time.time_ns(), [root]
    while stack:
        folder = stack.pop()
        changed = _time_of(folder)  # before the folder is listed
        if changed is None or now - changed < MIN_AGE_NS:
            return None
        times[folder] = changed
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        return None
                    if entry.is_dir():
                        stack.append(entry.path)
                    elif suffix_of(entry.name) not in KNOWN_SUFFIXES:
                        return None
        except OSError:
            return None
    return times


def _time_of(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _join(names: Sequence[str]) -> Tensor:
    """Return names as one tensor of bytes; a pickle of a million texts would take seconds to check."""
    return torch.frombuffer(bytearray("\0".join(names).encode("utf-8", "surrogateescape") or b"\0"), dtype=torch.uint8)


def _split(content: Tensor) -> list[str]:
    return content.numpy().tobytes().decode("utf-8", "surrogateescape").split("\0")
