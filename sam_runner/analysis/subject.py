"""A checkpoint of a run and the fixed examples that it is measured on."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from sam_runner.analysis.options import Measurement
from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.data.image_sets import Images
from sam_runner.data.loader import ImageLoader
from sam_runner.data.splits import Splits
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.reports.results import report_settings
from sam_runner.reports.tables import settings_label
from sam_runner.runs.folder import read_config
from sam_runner.runs.load import checkpoint_names, restore_run
from sam_runner.sam.batch import Batch
from sam_runner.training.builders.data import build_data
from sam_runner.training.builders.run import resolve_device
from sam_runner.training.evaluation import evaluation_weights, predict
from sam_runner.training.metrics import evaluation_metrics
from sam_runner.training.state import Run
from sam_runner.training.subset import fixed_subset, subset_loss
from sam_runner.utils.errors import InputError, first_line
from sam_runner.utils.files import read_json

log = logging.getLogger("sam_runner")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FOLDER = "analysis"  # in the run folder


class Subject:
    """A checkpoint of a run. The run is restored when it is first needed.

    Args:
        folder: The run folder.
        checkpoint: Name of the checkpoint, e.g. ``step-00000220``.
        label: The run in legends and tables.
        device: Device in place of the run's, or None.

    Attributes:
        config: Settings of the run.
        step: Number of training steps of the checkpoint.
        files: Folder of the results, ``analysis`` in the run folder.
    """

    def __init__(self, folder: Path, checkpoint: str, label: str, device: str | None) -> None:
        self.folder, self.checkpoint, self.label, self._device = folder, checkpoint, label, device
        self.config: ExperimentConfig = read_config(folder)
        self.step = int(checkpoint.split("-")[1])
        self.files = folder / FOLDER

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return str(read_json(self.folder / "checkpoints" / f"{self.checkpoint}.json")["sha256"])

    @cached_property
    def run(self) -> Run:
        """The restored run."""
        return restore_run(self.folder, self.checkpoint, self._device)

    @cached_property
    def splits(self) -> Splits:
        """The data of the run. Files are read once for consecutive runs with the same ones, see `build_data`."""
        return build_data(self.config.data, self.config.noise, self.config.seed)

    @property
    def train(self) -> Images:
        """Training set, with the labels that the run was trained with."""
        return self.splits.train

    @property
    def test(self) -> Images:
        """Test set."""
        return self.splits.test

    def release(self) -> None:
        """Free the memory of the restored run and its data; they are restored if they are needed again."""
        for name in ("run", "splits"):
            self.__dict__.pop(name, None)

    def examples(self, images: Images, how: Measurement) -> Batch:
        """Return fixed examples of the training set or the test set."""
        return fixed_subset(images, how.examples, self.run.train, DTYPES[how.dtype])

    def loss(self, how: Measurement) -> MeanLoss:
        """Return the loss of the run on its fixed training examples, at the weights that it is evaluated with.

        Raises:
            InputError: If the network does not compute in the precision.
            TrainingError: If the network draws random numbers in evaluation mode.
        """
        batch, dtype = self.examples(self.train, how), DTYPES[how.dtype]
        with evaluation_weights(self.run.step.optimizer):
            loss = subset_loss(self.config, self.run.model, batch, batchnorm=how.batchnorm, dtype=dtype)
        try:
            loss.require_repeatable()
        except (RuntimeError, TypeError) as error:
            if dtype == torch.float32:
                raise
            raise InputError(
                f"{self.folder}: the network does not compute in {how.dtype}: {first_line(error)}\n  leave --dtype out"
            ) from error
        return loss

    def generalisation(self) -> dict[str, float]:
        """Return accuracy and mean negative log-likelihood on the whole training set and the whole test set.

        Both are evaluated without augmentation and with the running statistics, as ``sam-eval`` evaluates the test set.
        """
        values: dict[str, float] = {}
        options, dtype = self.run.train.format_options(), self.run.step.objective.autocast_dtype
        with evaluation_weights(self.run.step.optimizer):
            for name, images in (("train", self.train), ("test", self.test)):
                logits, labels = predict(self.run.model, ImageLoader(images, batch_size=512, **options), dtype)
                found = evaluation_metrics(logits, labels)
                values |= {f"{name}_accuracy": found["accuracy"], f"{name}_nll": found["nll"]}
        return values


def find_subjects(folders: Sequence[Path], which: str, device: str | None = None) -> list[Subject]:
    """Return the checkpoints of runs, in the order of the folders and of the steps.

    Args:
        folders: Run folders.
        which: "last", "best" or "all".
        device: See `Subject`.

    Raises:
        InputError: If a folder has no run or no intact checkpoint, or the device does not exist.
    """
    if device is not None:
        resolve_device(load_experiment(read_config(folders[0]).to_dict() | {"device": device}).device)
    found = [(folder, name) for folder in folders for name in checkpoint_names(folder, which)]
    if which == "all":
        for folder in folders:
            names = {name for own, name in found if own == folder}
            damaged = sorted(
                path.stem for path in (folder / "checkpoints").glob("step-*.json") if path.stem not in names
            )
            if damaged:
                log.warning("%s: left out, since they are damaged or missing: %s", folder, ", ".join(damaged))
    labels = dict(zip(folders, run_labels(folders), strict=True))
    return [Subject(folder, name, labels[folder], device) for folder, name in found]


def run_labels(folders: Sequence[Path]) -> list[str]:
    """Return a short name of each run: its method, and the settings in which the runs differ.

    Runs that differ in no setting have the names of their folders.
    """
    settings = []
    for folder in folders:
        config = read_config(folder)
        settings.append(report_settings(config) | {"seed": config.seed})
    names = {name for row in settings for name in row}
    differ = {name for name in names if len({str(row[name]) for row in settings if name in row}) > 1}
    differ |= {"optimizer", "rho"}
    order = sorted(differ, key=lambda name: (name != "optimizer", name != "rho", name == "seed", name))
    labels = [settings_label({name: row[name] for name in order if name in row}) for row in settings]
    short = [folder.resolve().name for folder in folders]
    return [
        label if labels.count(label) == 1 else f"{label}, {name}" for label, name in zip(labels, short, strict=True)
    ]
