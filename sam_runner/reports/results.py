"""Read runs from folders: one record a run, and a table with one row for each distinct run.

All information comes from files in the run folders, so runs of any launcher, machine or time can be read together.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sam_runner.config.allowed_targets import VARIABLE
from sam_runner.config.data import LabelFileConfig
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.config.optimizer.base import SgdConfig
from sam_runner.config.optimizer.method import RadiusConfig
from sam_runner.runs.environment import read_environment
from sam_runner.runs.folder import NOT_STARTED, read_config
from sam_runner.runs.lock import is_locked
from sam_runner.runs.result import COSTS, read_finished_result
from sam_runner.runs.status import read_status
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import SETTINGS_FILE, keep_numbers

RUN_COLUMNS = [
    "seed", "status", "error", "job", "folder", "time", "resolved_precision", "commit", *COSTS, "fingerprint",
]  # fmt: skip


UNREADABLE = "unreadable"
METRIC_SETS = ("train", "validation", "test")  # metrics of these sets have a column at the epoch of early stopping


@dataclass(frozen=True)
class RunRecord:
    """One run, or one job of a sweep that has no run.

    Attributes:
        folder: The run folder.
        status: "finished", "running", "died" (the process ended without writing its status), "running or died" (only
            the machine of the run can tell), "failed", "interrupted" or "preempted"; of a job without a run "refused",
            "failed" or "not run"; of a run whose settings or result cannot be read `UNREADABLE`.
        config: Settings of the run; None for a job without a run, and where they cannot be read.
        result: Content of result.json; empty before the run has finished.
        status_json: Content of status.json.
        environment: Content of environment.json; empty for a job without a run.
    """

    folder: Path
    status: str
    config: ExperimentConfig | None
    result: Mapping[str, Any]
    status_json: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics at the end of training, by tag; empty before the run has finished."""
        return keep_numbers(self.result.get("final"))

    @property
    def best_metrics(self) -> Mapping[str, float]:
        """Metrics at the epoch that early stopping would choose; empty without held-out images."""
        is_selected = str(self.result.get("selected_by")).startswith(("validation/", "validation_ema/"))
        return keep_numbers(self.result.get("best")) if is_selected else {}

    @property
    def time(self) -> str:
        """UTC time of the last change of the status, at which a finished run has ended; "" if unknown."""
        return str(self.status_json.get("time", ""))

    @property
    def error(self) -> str:
        """Message of the error that ended the run; "" without an error."""
        return str(self.status_json.get("error", ""))

    @property
    def job(self) -> str:
        """Overrides of a sweep's job that failed; "" for other runs."""
        return str(self.status_json.get("job", ""))

    @property
    def commit(self) -> str:
        """Commit of the source, 12 digits, with "-dirty" where there were uncommitted changes; "" if unknown."""
        commit = str(self.environment.get("git_commit") or "")[:12]
        return f"{commit}-dirty" if commit and self.environment.get("git_changes") else commit

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that reports show; empty for a job without a run."""
        return {} if self.config is None else report_settings(self.config, selects=bool(self.best_metrics))

    def differences(self, other: "RunRecord") -> list[str]:
        """Return the names of the settings that affect the numbers of a run and differ from those of another run."""
        assert self.config is not None
        assert other.config is not None
        values = {name: value for name, facts, value in walk(other.config) if facts.effect != "none"}
        found = {name: value for name, facts, value in walk(self.config) if facts.effect != "none"}
        return [name for name in {**found, **values} if name != "seed" and found.get(name) != values.get(name)]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings that affect the result; of a job without a run its folder."""
        return str(self.folder) if self.config is None else self.config.fingerprint()


def read_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read every run in some folders and the folders below, each folder once, in the order of their names.

    A run whose config.yaml cannot be read has the status `UNREADABLE` and the reason as its error.

    Raises:
        InputError: Where a folder does not exist, or there are runs and none can be read.
    """
    found: dict[Path, RunRecord] = {}
    errors: list[InputError] = []
    for base in folders:
        if not base.is_dir():
            raise InputError(f"{base} is not a folder\n  give a sweep's folder, such as outputs/sweeps/<sweep_name>")
        for name, subfolders, files in os.walk(base):
            subfolders.sort()
            folder = Path(name)
            if SETTINGS_FILE in files and "run.log" in files:
                subfolders.clear()
                try:
                    run = _read_run(folder, read_config(folder))
                except InputError as error:
                    errors.append(error)
                    run = RunRecord(folder, UNREADABLE, None, {}, {"error": _explain_unreadable(folder, error)}, {})
                found.setdefault(folder.resolve(), run)
            elif folder.parent.name == NOT_STARTED and "status.json" in files:
                found.setdefault(folder.resolve(), _read_run(folder, None))
    if errors and all(run.status == UNREADABLE for run in found.values()):
        raise errors[0]
    return list(found.values())


def _explain_unreadable(folder: Path, error: InputError) -> str:
    """Return the reason in one line; for code of the user's own what makes the run readable."""
    first, *others = str(error).splitlines()
    first = first if str(folder) in first else f"{folder}: {first}"
    needs_trust = any(VARIABLE in line for line in others)
    return f"{first}; set {VARIABLE} as for sam-train" if needs_trust else first


def read_distinct_runs(folders: Iterable[Path]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Read the runs in some folders as `read_runs` does; of runs with the same fingerprint keep one.

    It is the finished run that has ended last; without a finished run it is the one whose status has changed last.

    Returns:
        The runs that are kept, and the finished runs with the fingerprint of one of them and other metrics.

    Raises:
        InputError: Where a folder does not exist, or there are runs and none can be read.
    """
    runs = read_runs(folders)
    in_time = sorted(enumerate(runs), key=lambda entry: (entry[1].status == "finished", entry[1].time))
    kept = {run.fingerprint: number for number, run in in_time}
    repeats = [
        run
        for run in runs
        if run.status == "finished" and str(run.metrics) != str(runs[kept[run.fingerprint]].metrics)  # NaN equals NaN
    ]
    return [runs[number] for number in sorted(kept.values())], repeats


def _read_run(folder: Path, config: ExperimentConfig | None) -> RunRecord:
    result, status, environment = read_finished_result(folder), read_status(folder), read_environment(folder)
    state = str(status.get("status", "started"))
    if result is not None:
        state = "finished"
    elif state == "running":
        locked = is_locked(folder, str(status.get("host")))
        state = {True: "running", False: "died", None: "running or died"}[locked]
    elif state == "finished":
        state = UNREADABLE
        reason = f"{folder / 'result.json'} is missing or damaged; the same command again writes it"
        status = {**status, "error": reason}
    return RunRecord(folder, state, config, result or {}, status, environment)


def report_settings(config: ExperimentConfig, *, selects: bool = False) -> dict[str, Any]:
    """Return the settings that reports show, by their names in reports, without the seed.

    Lists are returned as JSON text, so that every value can be compared and hashed.

    Args:
        config: All settings of a run.
        selects: Whether held-out images choose the best epoch. `eval_every`, which then decides between which epochs,
            is a setting of such runs; it changes no number of other runs.
    """
    values: dict[str, Any] = {}
    for name, facts, value in walk(config):
        if facts.short or (facts.in_reports and facts.effect != "none" and name != "seed"):
            plain = json.dumps(value) if isinstance(value, list | tuple | dict) else value
            values[facts.short or name] = plain  # optimizer.base.lr replaces the top-level setting lr
    if selects:
        values["eval_every"] = config.eval_every
    if isinstance(config.noise, LabelFileConfig):  # runs that differ in the seed may each have a file of labels
        own_seed = rf"(seed[=_-]?){config.seed}\b"
        values["noise.file"] = re.sub(own_seed, r"\1*", config.noise.file)
    has_no_radius = isinstance(config.optimizer, RadiusConfig) and config.optimizer.rho == 0
    if has_no_radius or values["optimizer"] == "sgd":  # optimizer=sgd optimizer/base=adamw trains with AdamW
        values["optimizer"] = "sgd" if isinstance(config.optimizer.base, SgdConfig) else "none"
    return values


def results_frame(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return a table of runs, one row a record in the same order, with the index 0, 1, ...

    Columns, in this order:

    - the settings that reports show (``optimizer``, then by name);
    - ``seed``, ``status``, ``error``, ``job``, ``folder``;
    - ``time`` (UTC) at which a finished run has ended; of other runs that of the last change of their status;
    - ``resolved_precision``, e.g. "bf16", which ``precision=auto`` chose;
    - ``commit`` of the source, 12 digits, with "-dirty" where there were uncommitted changes;
    - the costs ``gradient_evaluations``, ``images_forward``, ``images_backward``, ``training_seconds`` and
      ``peak_memory_bytes``;
    - ``fingerprint``;
    - the metrics at the end of training, by name; accuracies are fractions in [0, 1];
    - ``best/...``, the metrics of the three sets at the epoch of early stopping (the best one by
      ``early_stopping.metric``), where images were held out.

    A run without an entry has NaN or None there: a setting of another option, the metrics of a run that has not
    finished, the costs of a run of an earlier version.
    """
    settings = pd.DataFrame([run.settings for run in runs])
    settings = settings[sorted(map(str, settings), key=lambda name: (name != "optimizer", name))]
    facts = [
        (
            run.config.seed if run.config else None, run.status, run.error, run.job, str(run.folder),
            run.time or None, run.environment.get("resolved_precision"), run.commit or None,
            *(run.result.get(cost) for cost in COSTS), run.fingerprint,
        )
        for run in runs
    ]  # fmt: skip
    columns = pd.DataFrame(facts, columns=RUN_COLUMNS, dtype=object)
    columns = columns.astype({"seed": "Int64", **dict.fromkeys(COSTS, "float64")})
    metrics = pd.DataFrame([_metric_cells(run) for run in runs])
    metrics = metrics[sorted({*map(str, metrics)} - {*settings})]  # lr and rho are also metrics
    return pd.concat([settings, columns, metrics], axis=1)


def _metric_cells(run: RunRecord) -> dict[str, float]:
    best = {
        f"best/{tag}": value
        for tag, value in run.best_metrics.items()
        if tag.split("/")[0].removesuffix("_ema") in METRIC_SETS
    }
    return {**run.metrics, **best}


def setting_columns(results: pd.DataFrame) -> list[str]:
    """Return the columns of a table of `results_frame` that are settings."""
    return [str(name) for name in results.columns[: list(results.columns).index(RUN_COLUMNS[0])]]


def metric_columns(results: pd.DataFrame) -> list[str]:
    """Return the columns of a table of `results_frame` that are metrics."""
    return [str(name) for name in results.columns[list(results.columns).index(RUN_COLUMNS[-1]) + 1 :]]


def load_results(folders: Iterable[Path | str]) -> pd.DataFrame:
    """Return a table of the runs in some folders and the folders below, with one row for each distinct run.

    Runs with the same fingerprint have the same settings, so they are one run: the finished one that has ended last is
    kept. The columns are those of `results_frame`.

    Example:
        >>> results = load_results(["outputs/sweeps/first"])  # doctest: +SKIP
        >>> results.groupby(["optimizer", "rho"], dropna=False)["test/accuracy"].agg(["mean", "std"])  # doctest: +SKIP

    A run whose settings cannot be read has a row with the status "unreadable", and a warning says why.

    Raises:
        InputError: Where a folder does not exist, or there are runs and none can be read.
    """
    runs, _ = read_distinct_runs(map(Path, folders))
    for run in runs:
        if run.status == UNREADABLE:
            warnings.warn(f"left out: {run.error}", stacklevel=2)
    return results_frame(runs)


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
        except (ValueError, RecursionError):  # the last line of a run that is being written
            break
        if isinstance(row, dict) and "test/nll" in row and {tag, "epoch"} <= keep_numbers(row).keys():
            values[int(row["epoch"])] = row[tag]
    return pd.Series(values, dtype=float)
