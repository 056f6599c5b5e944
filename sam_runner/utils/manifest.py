"""The manifest beside a checkpoint: its size and SHA-256, written last, so that a damaged checkpoint is detected."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_runner.utils.files import read_json, sha256, write_json

FORMAT = 4


def write_manifest(path: Path, **facts: Any) -> None:
    """Write the manifest of the checkpoint at `path` as ``<name>.json`` beside it.

    Args:
        path: The checkpoint, a ``.pt`` file that is complete.
        facts: Further entries, JSON types.
    """
    manifest = {"format": FORMAT, "bytes": path.stat().st_size, "sha256": sha256(path), **facts}
    write_json(path.with_suffix(".json"), {**manifest, "check": _check(manifest)})


def _check(manifest: Mapping[str, Any]) -> str:
    """A sum of the manifest's other entries."""
    rest = {key: value for key, value in manifest.items() if key != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def manifest_fault(path: Path) -> str | None:
    """Why the checkpoint of a manifest cannot be used, or None."""
    manifest, file = read_json(path), path.with_suffix(".pt")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        return "damaged (its manifest does not parse)"
    if manifest["format"] != FORMAT:
        other = "a newer" if manifest["format"] > FORMAT else "an older"
        return f"written in format {manifest['format']}, this version reads {FORMAT}; use {other} version"
    if manifest.get("check") != _check(manifest):
        return "damaged (its manifest was changed)"
    if not file.is_file():
        return "damaged (missing)"
    try:
        if file.stat().st_size != manifest.get("bytes"):
            return f"damaged ({file.stat().st_size} bytes, its manifest says {manifest.get('bytes')})"
        if sha256(file) != manifest.get("sha256"):
            return "damaged (its sha256 is not the manifest's)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
