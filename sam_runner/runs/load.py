"""Build a run again from its folder, with the weights of a checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sam_runner.config.data import AugmentConfig
from sam_runner.config.experiment import load_experiment
from sam_runner.runs.folder import read_config
from sam_runner.training.build import build_run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.evaluation import evaluate, predict
from sam_runner.training.state import Run, restore
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically


def evaluate_folder(folder: Path, which: str, device: str | None = None) -> dict[str, float]:
    """Return metrics by tag of the model in a run folder; arguments and errors as of `restore_run`."""
    return evaluate(restore_run(folder, which, device))


def write_predictions(run: Run, path: Path) -> int:
    """Write the predicted class of each training image, the labels of bootstrapping (Reed et al., 2015).

    Args:
        run: A run whose loader gives every training image without augmentation, as `restore_run` with
            ``plain_training_set`` builds it.
        path: Path of a ``.npy`` file, int64, (N,), in the order of the training set, as ``noise=relabelled`` reads it.

    Returns:
        The number of images whose prediction differs from the label that they were trained with.

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


def restore_run(folder: Path, which: str, device: str | None = None, *, plain_training_set: bool = False) -> Run:
    """Build the run in a folder, with the weights of a checkpoint.

    Args:
        folder: The run folder.
        which: "last" or "best" (by validation accuracy; without a validation set the last).
        device: Device in place of the one in the run's settings.
        plain_training_set: Give every training image, without augmentation, as for evaluation.

    Raises:
        InputError: Where the folder holds no run or no good checkpoint, or the data cannot be read.
    """
    config = read_config(folder)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    found = checkpoints.latest() if which == "last" else checkpoints.best()
    if found is None:
        raise InputError(f"{folder} has no checkpoint yet: one is written at the end of every epoch")
    config = replace(
        config,
        device=device or config.device,
        model=replace(config.model, weights=None),  # the checkpoint has them
        compile="off",
        sync_batchnorm=False,
        parallel="ddp",
        world_size=1,
    )
    if plain_training_set:
        config = replace(config, augment=AugmentConfig(), data=replace(config.data, drop_last=False))
    config = load_experiment(config.to_dict())  # the device is the user's
    try:
        run = build_run(config)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder}/config.yaml does not fit this version: {str(error).splitlines()[0]}") from error
    try:
        restore(run, found)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint does not fit {folder}/config.yaml: {str(error).splitlines()[0]}") from error
    return run
