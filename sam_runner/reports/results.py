"""Read runs from folders: one record a run, and a table with one row for each distinct run.

All information comes from files in the run folders, so runs of any launcher, machine or time can be read together.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sam_runner.config.data import LabelFileConfig
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.config.optimizer import RadiusConfig
from sam_runner.runs.folder import NOT_STARTED, SETTINGS, read_config
from sam_runner.runs.lock import is_locked
from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import read_status
from sam_runner.utils.errors import InputError

RUN_COLUMNS = ["seed", "status", "error", "job", "folder", "fingerprint"]


@dataclass(frozen=True)
class RunRecord:
    """One run, or one job of a sweep that has no run.

    Attributes:
        folder: The run folder.
        status: "finished", "running", "died" (the process ended without writing its status), "running or died" (only
            the machine of the run can tell), "failed", "interrupted" or "preempted"; of a job without a run "refused",
            "failed" or "not run".
        config: Settings of the run; None for a job without a run.
        metrics: Metrics at the end of training, by tag; empty before the run has finished.
        error: Message of the error that ended the run; "" without an error.
        job: Overrides of a sweep's job that failed; "" for other runs.
    """

    folder: Path
    status: str
    config: ExperimentConfig | None
    metrics: Mapping[str, float]
    error: str = ""
    job: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that reports show; empty for a job without a run."""
        return {} if self.config is None else report_settings(self.config)


def read_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read every run in some folders and the folders below, each folder once, in the order of their names.

    Raises:
        InputError: Where a folder does not exist, or a run's config.yaml is not valid.
    """
    found: dict[Path, RunRecord] = {}
    for base in folders:
        if not base.is_dir():
            raise InputError(f"{base} is not a folder\n  give a sweep's folder, such as outputs/sweeps/<sweep_name>")
        for name, subfolders, files in os.walk(base):
            subfolders.sort()
            folder = Path(name)
            if SETTINGS in files and "run.log" in files:
                subfolders.clear()
                found.setdefault(folder.resolve(), _read_run(folder, read_config(folder)))
            elif folder.parent.name == NOT_STARTED and "status.json" in files:
                found.setdefault(folder.resolve(), _read_run(folder, None))
    return list(found.values())


def _read_run(folder: Path, config: ExperimentConfig | None) -> RunRecord:
    result, status = read_finished_result(folder), read_status(folder)
    state = str(status.get("status", "started"))
    if result is not None:
        state = "finished"
    elif state == "running":
        locked = is_locked(folder, str(status.get("host")))
        state = {True: "running", False: "died", None: "running or died"}[locked]
    metrics = (result or {}).get("final", {})
    return RunRecord(folder, state, config, metrics, str(status.get("error", "")), str(status.get("job", "")))


def report_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that reports show, by their names in reports, without the seed.

    Lists are returned as JSON text, so that every value can be compared and hashed.
    """
    values: dict[str, Any] = {}
    for name, facts, value in walk(config):
        if facts.short or (facts.in_reports and facts.effect != "none" and name != "seed"):
            plain = json.dumps(value) if isinstance(value, list | tuple | dict) else value
            values[facts.short or name] = plain  # optimizer.base.lr replaces the top-level setting lr
    if isinstance(config.noise, LabelFileConfig):  # runs that differ in the seed may each have a file of labels
        own_seed = rf"(seed[=_-]?){config.seed}\b"
        values["noise.file"] = re.sub(own_seed, r"\1*", config.noise.file)
    if isinstance(config.optimizer, RadiusConfig) and config.optimizer.rho == 0:
        values["optimizer"] = "sgd"
    return values


def results_frame(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return a table of runs, one row a record in the same order, with the index 0, 1, ...

    Columns, in this order: the settings that reports show (``optimizer``, then by name); `RUN_COLUMNS`; the metrics, by
    name. A run without a setting or metric has NaN or None there.
    """
    settings = pd.DataFrame([run.settings for run in runs])
    settings = settings[sorted(map(str, settings), key=lambda name: (name != "optimizer", name))]
    identities = [
        (run.config.seed, run.config.fingerprint()) if run.config else (None, str(run.folder)) for run in runs
    ]
    facts = [
        (seed, run.status, run.error, run.job, str(run.folder), fingerprint)
        for run, (seed, fingerprint) in zip(runs, identities, strict=True)
    ]
    columns = pd.DataFrame(facts, columns=RUN_COLUMNS, dtype=object).astype({"seed": "Int64"})
    metrics = pd.DataFrame([dict(run.metrics) for run in runs])
    metrics = metrics[sorted({*map(str, metrics)} - {*settings})]  # lr and rho are also metrics
    return pd.concat([settings, columns, metrics], axis=1)


def setting_columns(results: pd.DataFrame) -> list[str]:
    """Return the columns of a table of `results_frame` that are settings."""
    return [str(name) for name in results.columns[: list(results.columns).index(RUN_COLUMNS[0])]]


def metric_columns(results: pd.DataFrame) -> list[str]:
    """Return the columns of a table of `results_frame` that are metrics."""
    return [str(name) for name in results.columns[list(results.columns).index(RUN_COLUMNS[-1]) + 1 :]]


def load_results(folders: Iterable[Path | str]) -> pd.DataFrame:
    """Return a table of the runs in some folders and the folders below, with one row for each distinct run.

    Runs with the same fingerprint have the same settings, so they are one run: the last finished one is kept. The
    columns are those of `results_frame`.

    Example:
        >>> results = load_results(["outputs/sweeps/first"])  # doctest: +SKIP
        >>> results.groupby(["optimizer", "rho"], dropna=False)["test/accuracy"].agg(["mean", "std"])  # doctest: +SKIP

    Raises:
        InputError: Where a folder does not exist, or a run's config.yaml is not valid.
    """
    results = results_frame(read_runs(map(Path, folders)))
    finished_last = results.sort_values("status", key=lambda status: status == "finished", kind="stable")
    return finished_last.drop_duplicates("fingerprint", keep="last").sort_index()


def read_curve(folder: Path | str, tag: str) -> pd.Series:
    """Return a metric at the end of each evaluated epoch, indexed by epoch; empty without values."""
    values: dict[int, float] = {}
    try:
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that is being written
            break
        if tag in row and "test/nll" in row:
            values[int(row["epoch"])] = row[tag]
    return pd.Series(values, dtype=float)
