"""`sam-verify`: whether checkpoints are intact."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sam_runner.commands.arguments import Parser, path
from sam_runner.commands.exit_codes import BAD_INPUT, DONE, run_command
from sam_runner.utils.manifest import check_manifest
from sam_runner.utils.safe_load import holds_only_tensors


def main() -> int:
    """Run `sam-verify PATH...`. Returns the exit code: 2 if a checkpoint is damaged."""
    return run_command(verify)


def verify(arguments: list[str]) -> int:
    """Print a line for each checkpoint."""
    parser = Parser("sam-verify", "Check the size and SHA-256 of checkpoints. Exit code 2 if one is damaged.")
    parser.add_argument(
        "paths", type=path, nargs="+", metavar="PATH", help="run folders, folders of checkpoints, or checkpoints"
    )
    faults = 0
    for file, fault in verdicts(parser.parse(arguments).paths):
        print(f"good     {file}" if fault is None else f"damaged  {file}: {fault}")
        faults += fault is not None
    return BAD_INPUT if faults else DONE


def verdicts(paths: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Yield each checkpoint below the paths and its fault, None for a good one.

    Args:
        paths: Run folders, folders of checkpoints, checkpoints (``.pt``) or their manifests (``.json``).
    """
    for place in paths:
        if place.is_dir():
            folder = place / "checkpoints" if (place / "checkpoints").is_dir() else place
            found = sorted(
                {*folder.glob("step-*.pt"), *(file.with_suffix(".pt") for file in folder.glob("step-*.json"))}
            )
            yield from ((file, _fault(file)) for file in found)
            if not found:
                yield place, "holds no checkpoint"
        else:
            yield place.with_suffix(".pt"), _fault(place.with_suffix(".pt"))


def _fault(file: Path) -> str | None:
    manifest = file.with_suffix(".json")
    if not manifest.is_file():
        return "there is no such file" if not file.is_file() else "has no manifest (it was never completed)"
    fault = check_manifest(manifest)
    if fault is None and not holds_only_tensors(file):
        return "holds more than tensors and plain types"
    return fault
