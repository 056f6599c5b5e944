"""Restore a run from its folder: build the run from config.yaml and load a checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sam_runner.config.data import AugmentConfig
from sam_runner.config.experiment import load_experiment
from sam_runner.data.normalisation import read_normalisation
from sam_runner.runs.folder import read_config
from sam_runner.runs.result import read_finished_result
from sam_runner.training.build import build_run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.evaluation import evaluate, evaluation_weights, predict
from sam_runner.training.state import Run, restore_state
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically


def evaluate_folder(folder: Path, which: str, device: str | None = None) -> dict[str, float]:
    """Return the metrics of a checkpoint by tag; see `restore_run` for arguments and errors."""
    return evaluate(restore_run(folder, which, device))


def write_predictions(run: Run, path: Path) -> int:
    """Write the predicted class of each training image, for bootstrapping (Reed et al., 2015).

    Args:
        run: A run that `restore_run` built with ``plain_training_set``.
        path: Path of the ``.npy`` file to write: int64, (N,), in the order of the training set, as ``noise=relabelled``
            reads it.

    Returns:
        The number of images whose predicted class differs from their training label.

    Raises:
        InputError: If the file cannot be written.
    """
    with evaluation_weights(run.step.optimizer):
        logits, labels = predict(run.model, run.train, run.step.objective.autocast_dtype)
    predicted = logits.argmax(1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda handle: np.save(handle, predicted.cpu().numpy()))
    except OSError as error:
        raise InputError(f"--relabel {path} cannot be written: {error.strerror}\n  give another file") from error
    return int((predicted != labels).sum())


def checkpoint_names(folder: Path, which: str) -> list[str]:
    """Return the names of checkpoints of a run, oldest first, for `restore_run`.

    Args:
        folder: The run folder.
        which: "last", "best", or "all" for every checkpoint in the folder; see `restore_run`.

    Raises:
        InputError: If there is no such checkpoint.
    """
    checkpoints, which = CheckpointFolder(folder / "checkpoints"), _resolve_last(folder, which)
    names = checkpoints.list_names(which)
    if not names:
        checkpoints.load_latest() if which != "best" else checkpoints.load_best()  # says what is damaged
        raise _no_checkpoint(folder)
    return names


def _resolve_last(folder: Path, which: str) -> str:
    """Return "best" for the last weights of a finished run with early stopping, otherwise `which`."""
    has_best_weights = read_config(folder).early_stopping.patience is not None and read_finished_result(folder)
    return "best" if which == "last" and has_best_weights else which


def _no_checkpoint(folder: Path) -> InputError:
    return InputError(
        f"{folder} has no checkpoint yet\n  continue the run until the end of its first epoch: run_dir={folder}"
    )


def restore_run(folder: Path, which: str, device: str | None = None, *, plain_training_set: bool = False) -> Run:
    """Build the run in a folder, with the weights of a checkpoint.

    Args:
        folder: The run folder.
        which: "last", or "best" for the highest validation accuracy; without a validation set "best" is the checkpoint
            of the latest evaluated epoch; or a name from `checkpoint_names`. A finished run with early stopping has the
            weights of its best epoch, so "last" is its best checkpoint.
        device: Device to use instead of the device in the run's settings, or None.
        plain_training_set: Load every training image, without augmentation.

    Raises:
        InputError: If `which` is another word, the folder holds no run or no intact checkpoint, or the data cannot be
            read.
    """
    if which not in ("last", "best") and not which.startswith("step-"):
        raise InputError(f"checkpoint {which!r} is not known\n  accepted: last, best")
    config, which = read_config(folder), _resolve_last(folder, which)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if which == "last":
        state = checkpoints.load_latest()
    else:
        state = checkpoints.load_best() if which == "best" else checkpoints.load_named(which)
    if state is None:
        raise _no_checkpoint(folder)
    device = device or config.device
    if config.precision == "tf32" and (device == "cpu" or not torch.cuda.is_available()):
        config = replace(config, precision="fp32")  # tf32 is float32 with faster products on CUDA devices
    config = replace(
        config,
        device=device,
        model=replace(config.model, weights=None),  # the checkpoint holds the weights
        compile="off",
        sync_batchnorm=False,
        parallel="ddp",
        world_size=1,
    )
    normalisation = read_normalisation(folder)
    if normalisation is not None:  # its source may be the weights that are not loaded here
        config = replace(config, data=replace(config.data, normalisation="set"))
    if plain_training_set:
        config = replace(config, augment=AugmentConfig(), data=replace(config.data, drop_last=False))
    config = load_experiment(config.to_dict())  # the device is the user's
    try:
        run = build_run(config, normalisation=normalisation)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder}/config.yaml does not fit this version: {str(error).splitlines()[0]}") from error
    try:
        restore_state(run, state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint does not fit {folder}/config.yaml: {str(error).splitlines()[0]}") from error
    return run
