"""Runs as they lie on the disk, and what several of them together say: means and intervals over seeds.

Everything is read from the folders, so it does not matter who ran them, when, or with which launcher.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sam_runner.config.data import LabelFileConfig
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.runs.folder import NOT_STARTED, SETTINGS, read_config
from sam_runner.runs.lock import is_locked
from sam_runner.runs.status import read_status
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        folder: Where it lies.
        settings: By their short names, e.g. ``rho``, ``data._target_``; ``optimizer`` is sam or sgd.
        seed: Of the run.
        status: finished, running, died (without a word), "running or died" where only its machine could say, failed,
            interrupted or preempted; of a sweep's cell without a run: refused, failed or not run.
        final: Metrics at the end, empty where it has not finished.
        error: Of a run that failed.
        cell: What was typed for a cell of a sweep that failed.
        config: Settings of the run; None of a job that has no run.
    """

    folder: Path
    settings: Mapping[str, Any]
    seed: int
    status: str
    final: Mapping[str, float]
    error: str = ""
    cell: str = ""
    config: ExperimentConfig | None = None

    @property
    def paper(self) -> str:
        """The rows of the paper that it is compared with, "" where there are none."""
        return "" if self.config is None else self.config.paper or ""

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """Of metrics.jsonl."""
        try:
            text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return []
        rows = []
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that is being written
                break
            rows.append(row)
        return rows

    def curve(self, tag: str) -> dict[int, float]:
        """A metric by epoch, as it was at the end of each."""
        return {int(row["epoch"]): row[tag] for row in self.rows if tag in row and "test/nll" in row}


def records(folders: Iterable[Path]) -> list[Record]:
    """Every run in some folders and the folders below, each once, in the order of their names.

    Raises:
        InputError: Where there is no such folder.
    """
    found: dict[Path, Record] = {}
    for base in folders:
        if not base.is_dir():
            raise InputError(f"{base} is not a folder\n  give a sweep's folder, such as outputs/sweeps/<sweep_name>")
        for folder, below, files in os.walk(base):
            below.sort()
            if SETTINGS in files and "run.log" in files:
                below.clear()
                path = Path(folder)
                found.setdefault(path.resolve(), _record(path))
            elif Path(folder).parent.name == NOT_STARTED and "status.json" in files:
                path = Path(folder)
                status = _object(path / "status.json")
                state, error, cell = (str(status.get(key, "")) for key in ("status", "error", "job"))
                found.setdefault(path.resolve(), Record(path, {}, 0, state, {}, error, cell))
    return list(found.values())


def _record(folder: Path) -> Record:
    config = read_config(folder)
    result, status = _object(folder / "result.json"), read_status(folder)
    finished = result.get("status") == "finished"
    state = "finished" if finished else str(status.get("status", "started"))
    if state == "running":
        locked = is_locked(folder, str(status.get("host")))
        state = {True: "running", False: "died", None: "running or died"}[locked]
    return Record(
        folder,
        report_settings(config),
        config.seed,
        state,
        result.get("final", {}) if finished else {},
        str(status.get("error", "")),
        str(status.get("job", "")),
        config,
    )


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def report_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that reports show, by their short names, without the seed."""
    values: dict[str, Any] = {}
    short: dict[str, Any] = {}
    for name, facts, value in walk(config):
        plain = list(value) if isinstance(value, tuple) else value
        if facts.short:
            short[facts.short] = plain  # what the optimizer was given, in place of the top-level setting of this name
        elif facts.in_reports and not (facts.effect == "none" and "." in name) and name != "seed":
            values[name] = plain
    if isinstance(config.noise, LabelFileConfig):  # each seed may have labels of its own: that is no difference
        own_seed = rf"(seed[=_-]?){config.seed}\b"
        values["noise.file"] = re.sub(own_seed, r"\1*", config.noise.file)
    if short.get("rho") == 0:
        short["optimizer"] = "sgd"
    return {**values, **short}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        settings: Of those keys in which the groups differ.
        runs: That have finished.
    """

    settings: Mapping[str, Any]
    runs: Sequence[Record] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        """As in a legend."""
        return ", ".join(
            f"{column_title(key)} {format_value(value, key)}" if key != "optimizer" else value
            for key, value in self.present_settings()
        )

    def present_settings(self) -> Iterator[tuple[str, Any]]:
        """Settings that it has; plain training has no rho."""
        return ((key, value) for key, value in self.settings.items() if value is not None)

    def values(self, tag: str) -> list[float]:
        """Of a metric, by seed."""
        return [run.final[tag] for run in self.runs if tag in run.final]


def column_title(key: str) -> str:
    """A setting's key as a heading: what a group was set to is named by the group."""
    return key.removesuffix("._target_")


def format_value(value: Any, key: str = "") -> str:
    """A setting's value as it is typed, of a function or class the last part of its name."""
    if key.endswith("._target_"):
        return str(value).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value)


def groups(runs: Sequence[Record]) -> list[Group]:
    """Finished runs by everything but the seed, in the order of the values of what differs; of equal runs the last."""
    finished = [run for run in runs if run.status == "finished"]
    keys = sorted({key for run in finished for key in run.settings}, key=lambda key: (key != "optimizer", key))
    texts = {key: {json.dumps(run.settings.get(key)) for run in finished} for key in keys}
    differing = [key for key in keys if len(texts[key]) > 1 and not _follows_the_optimizer(key, finished)]
    sorted_in: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for run in finished:
        sorted_in[tuple(json.dumps(run.settings.get(key)) for key in differing)].append(run)
    made = [
        Group(
            {key: json.loads(text) for key, text in zip(differing, values, strict=True)},
            tuple(run for _, run in sorted({run.seed: run for run in members}.items())),  # a seed counts once
        )
        for values, members in sorted_in.items()
    ]
    return sorted(made, key=lambda group: [_order(group.settings[key]) for key in differing])


def _follows_the_optimizer(key: str, runs: Sequence[Record]) -> bool:
    """Whether a setting of SAM is the same in all its runs, and absent from the others: it tells nothing."""
    if not key.startswith("optimizer.") or key.startswith("optimizer.base"):
        return False
    return len({json.dumps(run.settings[key]) for run in runs if key in run.settings}) == 1


def _order(value: Any) -> tuple[int, float, str]:
    """Nothing, numbers by size, words by letter; sgd before sam."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return 2, float(value != "sgd"), str(value)
    return 1, float(value), ""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval (Student's t); the half is NaN for one value.

    Args:
        values: At least one.
    """
    if len(values) < 2:
        return mean(values), math.nan
    return mean(values), student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def student_t(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution, for 1 and more degrees of freedom."""
    from scipy.special import stdtrit  # imported here: it takes a moment

    return float(stdtrit(freedom, 0.975))
