"""Train and read runs from Python: `train`, `load_run` and `load_results`, as the commands do it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.rules.files import require_files
from sam_runner.runs.environment import resume_command
from sam_runner.runs.folder import read_config
from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import new_call_name
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from sam_runner.runs.model_facts import ModelFacts


@dataclass(frozen=True)
class RunResult:
    """A run on the disk.

    Attributes:
        folder: The run folder.
        config: Its settings.
    """

    folder: Path
    config: ExperimentConfig

    @property
    def result(self) -> dict[str, Any]:
        """result.json: status, seed, epoch, step, ``final`` and ``best`` metrics; empty where it has not finished."""
        return read_finished_result(self.folder) or {}

    @property
    def final(self) -> dict[str, float]:
        """Metrics at the end by tag, e.g. ``test/accuracy``; empty where the run has not finished."""
        metrics: dict[str, float] = self.result.get("final", {})
        return metrics

    @cached_property
    def model_facts(self) -> "ModelFacts":
        """Names of the classes, shape of the input, mean and standard deviation: ``model.json``.

        Raises:
            InputError: Where the run has not begun to train.
        """
        from sam_runner.runs.model_facts import read_model_facts

        return read_model_facts(self.folder)

    @cached_property
    def metrics(self) -> "pandas.DataFrame":
        """metrics.jsonl: one row a logged step, with the columns ``step``, ``epoch`` and the tags.

        Raises:
            InputError: Where the run has not begun to train.
        """
        import pandas

        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            raise InputError(
                f"{path} does not exist: the run has not begun to train, or the file was removed\n"
                f"  for a run that has not finished: {resume_command(self.folder, self.config)}"
            )
        return pandas.read_json(path, lines=True)

    def model(self, checkpoint: str = "last", device: str = "cpu") -> "nn.Module":
        """Build the network and load the weights of a checkpoint; the data are not read.

        `model_facts` says which inputs it needs and which classes its outputs are.

        Args:
            checkpoint: "last" or "best".
            device: Device of the network.

        Returns:
            The network in evaluation mode.

        Raises:
            InputError: Where `checkpoint` is another word, or there is no good checkpoint.
        """
        from sam_runner.runs.load import load_network

        return load_network(self.folder, checkpoint, device).model


def train(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> RunResult:
    """Train one run, as ``sam-train`` does with the same arguments.

    Args:
        overrides: ``key=value`` and ``group=option``, e.g. ``["optimizer=sam", "rho=0.05"]``; ``config=RUN`` uses the
            settings of an earlier run.
        config_dir: Folder of your own groups and options.

    Returns:
        The finished run.

    Raises:
        InputError: Where the settings are not valid; nothing has been written then. Also where an image cannot be read
            during the training.
        TrainingError: Where a number is not finite, or the disk is full.
        RunInterrupt: Where a signal stopped the run (SIGTERM, SIGUSR1, Ctrl-C) after it had saved a checkpoint. It is
            no subclass of Exception. ``train(["resume=FOLDER"])`` continues the run.
    """
    from sam_runner.commands.train import compose_single, name_call
    from sam_runner.config.experiment import load_experiment
    from sam_runner.config.hydra.command_line import parse_command_line
    from sam_runner.config.hydra.compose import plain_settings, typed_overrides

    line = parse_command_line(list(overrides))
    line.trust_targets()
    if line.flags:
        raise InputError(f"{line.flags[0]} is a flag of sam-train\n  give key=value and group=option, and config_dir")
    if config_dir is not None:
        line.flags.extend(["--config-dir", config_dir])
    composed = compose_single(line)
    config = load_experiment(plain_settings(composed), typed_overrides(composed.hydra))
    require_files(config)
    if config.dry_run:
        raise InputError("dry_run=true prints a plan and trains nothing\n  use sam-train ... dry_run=true")
    from sam_runner.runs.environment import record_command
    from sam_runner.runs.start import start_run

    name_call(new_call_name())  # each call has a folder of its own
    record_command(["sam-train", *line.flags, *overrides])
    folder = start_run(config, line.overrides)
    assert folder is not None
    return load_run(folder)


def load_run(folder: str | os.PathLike[str]) -> RunResult:
    """Read a run from its folder.

    Raises:
        InputError: Where the folder holds no run.
    """
    path = Path(os.path.expanduser(folder))
    return RunResult(path, read_config(path))


def load_results(*folders: str | os.PathLike[str]) -> "pandas.DataFrame":
    """Read every run below some folders: one row for each distinct run, the last finished one of equal runs.

    The columns are the settings as reports name them (``optimizer``, ``rho``, ``lr``, ``model.depth``); ``seed``,
    ``status``, ``error``, ``job``, ``folder`` and ``time`` (UTC) of the end; ``resolved_precision``; ``commit``; the
    costs ``gradient_evaluations``, ``images_forward``, ``images_backward``, ``training_seconds`` and
    ``peak_memory_bytes``; ``fingerprint``; and the final metrics by tag, accuracies as fractions in [0, 1], and
    ``best/...``, those of early stopping. A run without an entry has NaN or None there. A run whose settings cannot be
    read, such as one with code of your own that SAM_RUNNER_TRUSTED does not name, has a row with the status
    "unreadable", and a warning says why.

    Raises:
        InputError: Where a folder does not exist, or there are runs and none can be read.
    """
    from sam_runner.reports.results import load_results as load

    return load([Path(os.path.expanduser(folder)) for folder in folders])
