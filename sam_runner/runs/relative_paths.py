"""Paths in a run's settings that are relative: to the folder that the run was started in, which its folder records."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sam_runner.runs.folder import finished_result
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json

READ = (("data", "root"), ("noise", "file"))
PUBLISHED = ("torchvision", "timm")  # values of model.weights that are no paths


def found_again(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a run, with its data and labels where they are, for a command in another folder.

    A relative path is looked up in the folder that the run was started in, then in this one. What a run would download
    is left as it is, and so are all paths where it is not recorded where the run was started.

    Args:
        settings: Of the run.
        folder: The run folder.

    Raises:
        InputError: Where a path is in neither place; it names both.
    """
    changed = dict(settings)
    for group, key, value, start in _elsewhere(settings, folder, READ):
        places = (start / value, Path.cwd() / value)
        place = next((place for place in places if place.exists()), None)
        if place is None:
            tried = "".join(f"\n  tried: {place}" for place in places)
            raise InputError(f"{group}.{key}={value} of the run in {folder} is not there{tried}")
        changed[group] = {**changed[group], key: str(place)}
    return changed


def require_here(settings: Mapping[str, Any]) -> None:
    """Refuse to continue a run from a folder where its relative paths lead nowhere.

    Args:
        settings: Plain and validated, of a single run.

    Raises:
        InputError: Which path it is, and from where it can be continued.
    """
    folder = Path(os.path.expanduser(settings["run_dir"] or ""))
    if not settings["run_dir"] or finished_result(folder):
        return
    for group, key, value, start in _elsewhere(settings, folder, (*READ, ("model", "weights"))):
        if not Path(value).exists() and (start / value).exists():
            raise InputError(
                f"{group}.{key}={value} is not in {Path.cwd()}, but where the run in {folder} was started\n"
                f"  continue it from there: cd {start}"
            )


def _elsewhere(
    settings: Mapping[str, Any], folder: Path, keys: tuple[tuple[str, str], ...]
) -> Iterator[tuple[str, str, str, Path]]:
    """(group, key, value, start) of relative paths; none where the run was started here, or it is not known where."""
    environment = read_json(folder / "environment.json")
    start = environment.get("folder") if isinstance(environment, dict) else None
    if not isinstance(start, str) or Path(start) == Path.cwd():
        return
    for group, key in keys:
        value = settings[group].get(key)
        relative = isinstance(value, str) and not os.path.isabs(os.path.expanduser(value))
        if relative and value not in PUBLISHED and not settings[group].get("download"):
            yield group, key, value, Path(start)
