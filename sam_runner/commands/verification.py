"""`sam-verify`: whether checkpoints are what was written."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sam_runner.utils.manifest import check_manifest
from sam_runner.utils.safe_load import holds_only_tensors


def verdicts(paths: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Each checkpoint of the paths, and what is wrong with it, or None.

    Args:
        paths: Run folders, folders of checkpoints, checkpoints (``.pt``) or their manifests (``.json``).
    """
    for path in paths:
        if path.is_dir():
            folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
            found = sorted(
                {*folder.glob("step-*.pt"), *(file.with_suffix(".pt") for file in folder.glob("step-*.json"))}
            )
            yield from ((file, _fault(file)) for file in found)
            if not found:
                yield path, "holds no checkpoint"
        else:
            yield path.with_suffix(".pt"), _fault(path.with_suffix(".pt"))


def _fault(file: Path) -> str | None:
    manifest = file.with_suffix(".json")
    if not manifest.is_file():
        return "there is no such file" if not file.is_file() else "has no manifest (it was never completed)"
    fault = check_manifest(manifest)
    if fault is None and not holds_only_tensors(file):
        return "holds more than tensors and plain types"
    return fault
