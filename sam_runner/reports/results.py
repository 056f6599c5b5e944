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

import yaml
from yaml.events import AliasEvent

from sam_runner.runs.folder import NOT_STARTED, SETTINGS, flat, still_running
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import read_json

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNTOLD = {  # settings that say how or where a run was made, not what it is
    "run_dir", "sweep_name", "dry_run", "device", "log_every", "data.root", "data.download", "data.num_workers", "rho",
    "noise.file", "rank_timeout", "sweep.on_error", "paper", "eval_every",
}  # fmt: skip
SHORT = {"optimizer.rho": "rho", "optimizer.base.lr": "lr", "optimizer.base.weight_decay": "weight_decay"}


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
        typed: Settings as config.yaml has them.
    """

    folder: Path
    settings: Mapping[str, Any]
    seed: int
    status: str
    final: Mapping[str, float]
    error: str = ""
    cell: str = ""
    typed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paper(self) -> str:
        """The rows of the paper that it is compared with, "" where there are none."""
        return str(self.typed.get("paper") or "")

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
                state, error, cell = (str(status.get(key, "")) for key in ("status", "error", "cell"))
                found.setdefault(path.resolve(), Record(path, {}, 0, state, {}, error, cell))
    return list(found.values())


def _record(folder: Path) -> Record:
    try:
        text = (folder / SETTINGS).read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, AliasEvent) for event in yaml.parse(text, LOADER)):
            raise InputError(f"{folder / SETTINGS} has YAML aliases, which are not accepted")
        settings = yaml.load(text, LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder / SETTINGS} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{folder / SETTINGS} is not a configuration")
    result, status = _object(folder / "result.json"), _object(folder / "status.json")
    finished = result.get("status") == "finished"
    state = "finished" if finished else str(status.get("status", "started"))
    if state == "running":
        running = still_running(folder, str(status.get("host")))
        state = {True: "running", False: "died", None: "running or died"}[running]
    short = report_settings(settings)
    seed = short.pop("seed", 0)
    final = result.get("final", {}) if finished else {}
    return Record(
        folder, short, seed, state, final, str(status.get("error", "")), str(status.get("cell", "")), settings
    )


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def report_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings under short names, without those that tell nothing about the result."""
    values = {key: value for key, value in flat(settings).items() if key not in UNTOLD}
    if str(values.get("data._target_")).endswith("image_folder"):
        values["data.root"] = flat(settings).get("data.root")  # it says which images
    if str(values.get("noise._target_")).endswith(".relabelled"):  # a teacher for each seed: the seed is no difference
        own_seed = rf"(seed[=_-]?){re.escape(str(settings.get('seed')))}\b"
        values["noise.file"] = re.sub(own_seed, r"\1*", str(flat(settings).get("noise.file")))
    values = {SHORT.get(key, key): value for key, value in values.items() if not key.startswith("checkpoint.")}
    own = {key for key in SHORT if key in flat(settings)}
    values |= {SHORT[key]: flat(settings)[key] for key in own}  # what the optimizer was given, not what was typed
    return {"optimizer": "sam" if values.get("rho", 0) else "sgd", **values}


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
