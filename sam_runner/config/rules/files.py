"""Packages, data folders and files that a run needs."""

import importlib.util
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from sam_runner.config.data import (
    HuggingFaceConfig,
    HumanNoiseConfig,
    ImageFolderConfig,
    ImageListConfig,
    LabelFileConfig,
)
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from sam_runner.config.experiment import ExperimentConfig


def require_files(config: "ExperimentConfig") -> None:
    """Raise InputError if a package, data folder, or file of paths or labels is missing; torch is not imported."""
    for name in config.logger:
        if name in ("wandb", "mlflow") and importlib.util.find_spec(name) is None:
            raise InputError(f"logger={name} needs the package {name}\n  pip install {name}")
    if (
        isinstance(config.data, ImageFolderConfig)
        and not config.dry_run
        and not os.path.isdir(os.path.expanduser(config.data.root))
    ):
        raise InputError(
            f"data.root={config.data.root} is not a folder{_describe_absent(config.data.root)}\n"
            "  expected: <root>/<class>/*.jpg, or <root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg"
        )
    if isinstance(config.data, HuggingFaceConfig) and not os.path.isdir(os.path.expanduser(config.data.root)):
        raise InputError(f"data.root={config.data.root} is not a folder\n  give the folder of the data set")
    if isinstance(config.data, ImageListConfig) and not os.path.isfile(os.path.expanduser(config.data.file)):
        raise InputError(
            f"data.file={config.data.file} is not a file\n  expected: a CSV file with the columns path and label"
        )
    if isinstance(config.noise, LabelFileConfig | HumanNoiseConfig):
        file = config.noise.file
        if not os.path.isfile(os.path.expanduser(file)):
            raise InputError(f"noise.file={file} is not a file\n  give the path of the file of labels")


def _describe_absent(path: str) -> str:
    """Say why a folder does not exist: name the nearest existing folder around it and a folder of a similar name."""
    wanted = Path(os.path.expanduser(path)).absolute()
    if os.path.exists(wanted):  # unlike Path.exists it accepts names that are too long
        return ": it is a file"
    parent = next(folder for folder in wanted.parents if os.path.isdir(folder))
    name = wanted.relative_to(parent).parts[0]
    others = [entry.name for entry in parent.iterdir() if entry.is_dir()] if os.access(parent, os.R_OK) else []
    similar = get_close_matches(name, others, 1)
    return f": {parent} has no folder {name}" + (f"\n  did you mean {parent / similar[0]}?" if similar else "")
