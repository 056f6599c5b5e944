"""Evaluate a run's checkpoint; its folder says all, and the data are read again."""

from pathlib import Path

from omegaconf import OmegaConf

from sam_runner.build import build_run
from sam_runner.checkpoint import CheckpointFolder
from sam_runner.config import require_allowed_targets
from sam_runner.errors import InputError
from sam_runner.run import restore
from sam_runner.run_folder import read_settings
from sam_runner.schema import Root
from sam_runner.scoring import evaluate


def evaluate_folder(folder: Path, which: str, device: str | None = None) -> dict[str, float]:
    """Metrics by tag of the model in a run folder.

    Args:
        folder: The run folder.
        which: "last" or "best" (by validation accuracy; without a validation set the last).
        device: Instead of the one that the run asked for.

    Raises:
        InputError: Where the folder holds no run or no good checkpoint.
    """
    settings = read_settings(folder)
    require_allowed_targets(OmegaConf.create(settings))
    missing = [key for key in Root.__dataclass_fields__ if key not in settings]
    if missing:
        raise InputError(f"{folder}/config.yaml lacks {', '.join(missing)}")
    try:
        model = {key: value for key, value in settings["model"].items() if key != "weights"}  # the checkpoint has them
        alone = {"compile": "off", "sync_batchnorm": False, "parallel": "ddp"}  # one process, without a training
        run = build_run({**settings, **alone, "model": model, "device": device or settings["device"]})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder}/config.yaml does not fit this version: {str(error).splitlines()[0]}") from error
    checkpoints = CheckpointFolder(folder / "checkpoints")
    found = checkpoints.latest() if which == "last" else checkpoints.best()
    if found is None:
        raise InputError(f"{folder} has no checkpoint yet: one is written at the end of every epoch")
    try:
        restore(run, found)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint does not fit {folder}/config.yaml: {str(error).splitlines()[0]}") from error
    return evaluate(run)
