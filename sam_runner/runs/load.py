"""Restore a run, or its network alone, from its folder: build it from config.yaml and load a checkpoint."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sam_runner.config.data import AugmentConfig
from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.data.normalisation import read_normalisation
from sam_runner.distributed.sharding import load_full_model_state, load_full_optimizer_state
from sam_runner.models.build import weights_dtype
from sam_runner.runs.environment import resume_command
from sam_runner.runs.folder import read_config
from sam_runner.runs.model_facts import ModelFacts, read_model_facts
from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import read_status
from sam_runner.training.builders.optimizer import build_optimizer
from sam_runner.training.builders.run import (
    AUTOCAST_DTYPES,
    build_network,
    build_run,
    resolve_device,
    resolve_precision,
)
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.evaluation import evaluation_weights, exchanges_weights, predict
from sam_runner.training.state import Run, restore_state
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically
from sam_runner.utils.hardware import configure_torch


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
    """Return the error of a run without a checkpoint, with the reason if the run failed."""
    status = read_status(folder)
    if status.get("status") == "failed":
        reason = str(status.get("error", "")).splitlines()[:1] or ["see run.log"]
        return InputError(
            f"{folder} has no checkpoint: the run failed: {reason[0]}\n"
            f"  with other settings: sam-train config={shlex.quote(str(folder))} KEY=VALUE run_dir=NEW"
        )
    return InputError(
        f"{folder} has no checkpoint yet: the run writes one at the end of its first epoch\n"
        f"  if the run has stopped, continue it: {resume_command(folder, read_config(folder))}"
    )


def restore_run(folder: Path, which: str, device: str | None = None, *, plain_training_set: bool = False) -> Run:
    """Build the run in a folder, with the weights of a checkpoint.

    Args:
        folder: The run folder.
        which: "last", or "best" for the best epoch by ``early_stopping.metric``; without a validation set "best" is the
            checkpoint of the latest evaluated epoch; or a name from `checkpoint_names`. A finished run with early
            stopping has the weights of its best epoch, so "last" is its best checkpoint.
        device: Device to use instead of the device in the run's settings, or None.
        plain_training_set: Load every training image, without augmentation.

    Raises:
        InputError: If `which` is another word, the folder holds no run or no intact checkpoint, or the data cannot be
            read.
    """
    config, state = _load_checkpoint(folder, which, device)
    normalisation = read_normalisation(folder)
    if normalisation is not None:  # its source may be the weights that are not loaded here
        config = replace(config, data=replace(config.data, normalisation="set"))
    if plain_training_set:
        config = replace(config, augment=AugmentConfig(), data=replace(config.data, drop_last=False))
    config = load_experiment(config.to_dict())  # the device is the user's
    with explain_misfit(f"{folder}/config.yaml does not fit this version"):
        run = build_run(config, normalisation=normalisation)
    with explain_misfit(f"the checkpoint does not fit {folder}/config.yaml or your code"):
        restore_state(run, state)
    return run


@dataclass(frozen=True)
class TrainedNetwork:
    """The network of a run with the weights of a checkpoint, usable without the data of the run.

    Attributes:
        model: The network in evaluation mode, with the weights that evaluations use.
        facts: Its classes, the shape of its input and the normalisation.
        config: Settings of the run.
        autocast_dtype: dtype of autocast in evaluations, None for no autocast.
        format_options: Arguments with which an `ImageLoader` makes the inputs of the network.
    """

    model: nn.Module
    facts: ModelFacts
    config: ExperimentConfig
    autocast_dtype: torch.dtype | None
    format_options: Mapping[str, Any]


def load_network(folder: Path, which: str, device: str | None = None) -> TrainedNetwork:
    """Build the network of the run in a folder, with the weights of a checkpoint; the data are not read.

    Args:
        folder: The run folder.
        which: "last" or "best", as in `restore_run`.
        device: Device to use instead of the device in the run's settings, or None.

    Raises:
        InputError: If `which` is another word, or the folder holds no run, no ``model.json`` or no intact checkpoint.
    """
    config, state = _load_checkpoint(folder, which, device)
    facts = read_model_facts(folder)
    config = load_experiment(config.to_dict())  # the device is the user's
    chosen = resolve_device(config.device)
    precision, _ = resolve_precision(config.precision, chosen)
    configure_torch(chosen, tf32=precision == "tf32", deterministic=config.deterministic)
    with explain_misfit(f"{folder}/config.yaml does not fit this version"):
        num_classes = len(facts.classes)
        model, channels_last = build_network(config, num_classes, facts.blank(2), chosen)
        optimizer = build_optimizer(config.optimizer, model, num_classes, head_lr=config.head_lr)
    with explain_misfit(f"the checkpoint does not fit {folder}/config.yaml or your code"):
        load_full_model_state(model, state["model"])
        if exchanges_weights(optimizer):
            load_full_optimizer_state(optimizer, state["optimizer"])
            optimizer.eval()  # type: ignore[attr-defined]
    options = {
        "normalisation": facts.normalisation,
        "device": chosen,
        "dtype": weights_dtype(config.precision),
        "channels_last": channels_last,
    }
    return TrainedNetwork(model.eval(), facts, config, AUTOCAST_DTYPES[precision], options)


def _load_checkpoint(folder: Path, which: str, device: str | None) -> tuple[ExperimentConfig, dict[str, Any]]:
    """Return the settings of a run for one process, with `device` if it is given, and the state of a checkpoint.

    Raises:
        InputError: See `restore_run`.
    """
    if which not in ("last", "best") and not which.startswith("step-"):
        raise InputError(f"checkpoint {which!r} is not known\n  accepted: last, best")
    config, which = read_config(folder), _resolve_last(folder, which)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if which == "last":
        state = checkpoints.load_latest()
    else:
        state = checkpoints.load_best() if which == "best" else checkpoints.load_by_name(which)
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
    return config, state


@contextmanager
def explain_misfit(fault: str) -> Iterator[None]:
    """Turn the errors of settings and checkpoints that do not fit into an `InputError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join((str(error) or type(error).__name__).split("\n\t", 2)[:2])  # torch: which keys are missing
        raise InputError(
            f"{fault}: {reason.splitlines()[0].strip()[:300]}\n"
            "  use the config.yaml and the code with which the run was made; for a new run: config=RUN run_dir=NEW"
        ) from error
