"""model.json of a run folder: the facts about the data that the network of a run was built from.

With config.yaml (how to build the network) and normalisation.json (mean and standard deviation) the network can be used
without the data that it was trained on.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam_runner.config.allowed_targets import trust_prefix
from sam_runner.data.normalisation import Normalisation, read_normalisation
from sam_runner.runs.environment import train_command
from sam_runner.runs.folder import read_config
from sam_runner.training.state import Run
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import NORMALISATION_FILE, read_json, write_json

MODEL_FILE = "model.json"
INPUT_TYPES = ("image", "float32", "int64")


@dataclass(frozen=True)
class ModelFacts:
    """What the input and the output of a run's network are.

    Attributes:
        classes: Name of the class of each output.
        input_shape: (C, H, W) of the images, or the shape of another input.
        input_type: "image" (pixel values in [0, 1]), "float32" or "int64".
        normalisation: Mean and standard deviation of the inputs by channel.
    """

    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    input_type: str
    normalisation: Normalisation

    def blank(self, count: int) -> Tensor:
        """Return `count` inputs of zeros, (count, ...)."""
        return torch.zeros(count, *self.input_shape, dtype=torch.int64 if self.input_type == "int64" else torch.float32)

    def require_images(self, folder: Path) -> None:
        """Raise InputError if the inputs of the run in a folder are no images."""
        if self.input_type != "image":
            raise InputError(
                f"the inputs of {folder} are {self.input_type} of shape {self.input_shape}, not images\n"
                "  sam-predict can read the sets of the run: --split test\n"
                "  for other inputs use Python: load_run(RUN).model() (docs/own_data.md)"
            )


def write_model_facts(folder: Path, run: Run) -> None:
    """Write ``model.json`` and ``normalisation.json`` into a run folder."""
    facts = {"classes": list(run.classes), "input_shape": list(run.train.shape), "input_type": run.train.input_type}
    write_json(folder / MODEL_FILE, facts)
    run.train.normalisation.write(folder)


def read_model_facts(folder: Path) -> ModelFacts:
    """Return what a run has stored about its network.

    Raises:
        InputError: If the folder holds no run, or a file is missing or holds anything else.
    """
    config = read_config(folder)  # refuses a folder without a run
    path, normalisation = folder / MODEL_FILE, read_normalisation(folder)
    train = f"{trust_prefix(config.to_dict())}{train_command(config.world_size)}"
    again = f"{train} {shlex.quote(f'config={folder}')} run_dir=NEW"
    if not path.exists() or normalisation is None:
        missing = NORMALISATION_FILE if path.exists() else MODEL_FILE
        raise InputError(
            f"{folder} has no {missing}: the run has not begun to train, or an earlier version trained it\n"
            f"  train it again: {again}"
        )
    stored = read_json(path)
    try:
        classes = tuple(map(str, stored["classes"]))
        shape, input_type = tuple(map(int, stored["input_shape"])), str(stored["input_type"])
        if len(classes) < 2 or min(shape) < 1 or len(normalisation.mean) != shape[0] or input_type not in INPUT_TYPES:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no classes, input_shape and input_type\n  train the run again: {again}"
        ) from error
    return ModelFacts(classes, shape, input_type, normalisation)
