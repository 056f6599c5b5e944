"""model.json of a run folder: the facts about the data that the network of a run was built from.

With config.yaml (how to build the network) and normalisation.json (mean and standard deviation) the network can be used
without the data that it was trained on.
"""

from dataclasses import dataclass
from pathlib import Path

from sam_runner.data.normalisation import Normalisation, read_normalisation
from sam_runner.runs.folder import read_config
from sam_runner.training.state import Run
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json, write_json

MODEL_FILE = "model.json"


@dataclass(frozen=True)
class ModelFacts:
    """What the input and the output of a run's network are.

    Attributes:
        classes: Name of the class of each output.
        input_shape: (C, H, W) of the images.
        normalisation: Mean and standard deviation of the inputs by channel.
    """

    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    normalisation: Normalisation


def write_model_facts(folder: Path, run: Run) -> None:
    """Write ``model.json`` and ``normalisation.json`` into a run folder."""
    write_json(folder / MODEL_FILE, {"classes": list(run.classes), "input_shape": list(run.train.shape)})
    run.train.normalisation.write(folder)


def read_model_facts(folder: Path) -> ModelFacts:
    """Return what a run has stored about its network.

    Raises:
        InputError: If the folder holds no run, or a file is missing or holds anything else.
    """
    read_config(folder)  # refuses a folder without a run
    path, normalisation = folder / MODEL_FILE, read_normalisation(folder)
    if not path.exists() or normalisation is None:
        raise InputError(
            f"{folder} has no {MODEL_FILE}: the run has not begun to train, or an earlier version trained it\n"
            f"  train it again: sam-train config={folder} run_dir=NEW"
        )
    stored = read_json(path)
    try:
        classes = tuple(map(str, stored["classes"]))
        channels, height, width = map(int, stored["input_shape"])
        if len(classes) < 2 or min(channels, height, width) < 1 or len(normalisation.mean) != channels:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no classes and input_shape\n  train the run again: sam-train config={folder} run_dir=NEW"
        ) from error
    return ModelFacts(classes, (channels, height, width), normalisation)
