"""The manifest beside a checkpoint: its size and SHA-256, written last, so that a damaged checkpoint is detected."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_runner.utils.files import hash_file, read_json, write_json

FORMAT = 5


def write_manifest(path: Path, **entries: Any) -> None:
    """Write the manifest of a complete checkpoint ``<name>.pt`` as ``<name>.json``; `entries` are JSON values."""
    manifest = {"format": FORMAT, "bytes": path.stat().st_size, "sha256": hash_file(path), **entries}
    write_json(path.with_suffix(".json"), {**manifest, "check": _checksum(manifest)})


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Return the checksum over all entries of a manifest except ``check``, which stores it."""
    entries = {key: value for key, value in manifest.items() if key != "check"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def check_manifest(path: Path) -> str | None:
    """Compare a checkpoint with its manifest.

    Args:
        path: The manifest, ``<name>.json``.

    Returns:
        Why the checkpoint ``<name>.pt`` cannot be used, or None if it is intact.
    """
    manifest, checkpoint = read_json(path), path.with_suffix(".pt")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        return "damaged (its manifest does not parse)"
    if manifest["format"] != FORMAT:
        version = "a newer" if manifest["format"] > FORMAT else "an older"
        return f"written in format {manifest['format']}, this version reads {FORMAT}; use {version} version"
    if manifest.get("check") != _checksum(manifest):
        return "damaged (its manifest was changed)"
    if not checkpoint.is_file():
        return "damaged (missing)"
    try:
        if checkpoint.stat().st_size != manifest.get("bytes"):
            return f"damaged ({checkpoint.stat().st_size} bytes, its manifest says {manifest.get('bytes')})"
        if hash_file(checkpoint) != manifest.get("sha256"):
            return "damaged (its sha256 differs from the manifest's)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
