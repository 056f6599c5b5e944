"""Evaluate a run's checkpoint; its folder says all, and the data are read again."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from sam_runner.config.schema import Root
from sam_runner.config.validation import require_allowed_targets
from sam_runner.data.augment.augmentation import Augmentation
from sam_runner.runs.folder import read_settings
from sam_runner.runs.relative_paths import found_again
from sam_runner.training.build import build_run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.evaluation import evaluate, predict
from sam_runner.training.state import Run, restore
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically


def evaluate_folder(folder: Path, which: str, device: str | None = None) -> dict[str, float]:
    """Metrics by tag of the model in a run folder; arguments and errors as of `restored`."""
    return evaluate(restored(folder, which, device))


def relabel(run: Run, path: Path) -> int:
    """Write what a run's model says of its training images: the labels of bootstrapping (Reed et al., 2015).

    Args:
        run: With every training image as it is, as `restored` with ``as_is`` gives it.
        path: Of a ``.npy``: int64, (N,), in the order of the training set, as ``noise=relabelled`` reads it.

    Returns:
        The number of images that are given another label than they were trained with.

    Raises:
        InputError: Where the file cannot be written.
    """
    logits, labels = predict(run.model, run.train, run.step.objective.autocast_dtype)
    predicted = logits.argmax(1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda handle: np.save(handle, predicted.cpu().numpy()))
    except OSError as error:
        raise InputError(f"relabel={path} cannot be written: {error.strerror}\n  give another file") from error
    return int((predicted != labels).sum())


def restored(folder: Path, which: str, device: str | None = None, *, as_is: bool = False) -> Run:
    """The run in a folder, with a checkpoint's weights.

    Args:
        folder: The run folder.
        which: "last" or "best" (by validation accuracy; without a validation set the last).
        device: Instead of the one that the run asked for.
        as_is: Every training image, without augmentation, as for evaluation.

    Raises:
        InputError: Where the folder holds no run or no good checkpoint, or the data are not where they were.
    """
    settings = read_settings(folder)
    require_allowed_targets(OmegaConf.create(settings))
    missing = [key for key in Root.__dataclass_fields__ if key not in settings]
    if missing:
        raise InputError(f"{folder}/config.yaml lacks {', '.join(missing)}")
    checkpoints = CheckpointFolder(folder / "checkpoints")
    found = checkpoints.latest() if which == "last" else checkpoints.best()
    if found is None:
        raise InputError(f"{folder} has no checkpoint yet: one is written at the end of every epoch")
    try:
        settings = found_again(settings, folder)
        model = {key: value for key, value in settings["model"].items() if key != "weights"}  # the checkpoint has them
        alone = {"compile": "off", "sync_batchnorm": False, "parallel": "ddp"}  # one process, without a training
        plain = {"augment": asdict(Augmentation()), "data": {**settings["data"], "drop_last": False}} if as_is else {}
        run = build_run({**settings, **alone, **plain, "model": model, "device": device or settings["device"]})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder}/config.yaml does not fit this version: {str(error).splitlines()[0]}") from error
    try:
        restore(run, found)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint does not fit {folder}/config.yaml: {str(error).splitlines()[0]}") from error
    return run
