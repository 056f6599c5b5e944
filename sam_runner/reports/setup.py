"""Describe how runs were made: data, labels, network, training, precision, hardware, source, time and commands."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sam_runner.config.component import Component
from sam_runner.config.experiment import ExperimentConfig
from sam_runner.config.keys import walk
from sam_runner.reports.rerun import typed_command
from sam_runner.reports.results import RunRecord, report_settings, setting_columns
from sam_runner.reports.tables import column_title, format_value, printable
from sam_runner.utils.console import format_duration

NOT_RECORDED = "not recorded (runs of an earlier version)"
MAX_NAMED = 3  # runs, or groups of runs, that a warning names


@dataclass(frozen=True)
class Setup:
    """How runs were made.

    Attributes:
        task: Network, data, wrong labels and epochs in one line; "" without a run.
        facts: Name and description of each fact.
        warnings: Sentences on differences between runs that a comparison should not have.
        commands: The distinct commands that started the runs.
        changed_settings: Name and value of each setting that all runs have in common and that is not the default.
        default_settings: Name and value of each setting that has the default in all runs.
    """

    task: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    commands: Sequence[str]
    changed_settings: Sequence[tuple[str, str]]
    default_settings: Sequence[tuple[str, str]]


def describe_setup(records: Sequence[RunRecord], results: pd.DataFrame) -> Setup:
    """Describe how runs were made.

    Args:
        records: The runs and jobs.
        results: Their table, as of `results_frame`.
    """
    runs = [record for record in records if record.config is not None]
    facts = {
        "data": _per_value(runs, lambda config: config.data, "data", _count_images),
        "labels": _per_value(runs, lambda config: config.noise, "noise", _count_wrong_labels),
        "network": _per_value(runs, lambda config: config.model, "model", _count_parameters),
        "training": _describe_training(runs),
        "precision": _join(_describe_precision(run) for run in runs),
        "hardware": _join(_describe_hardware(run) for run in runs),
        "software": _join(_describe_software(run) for run in runs),
        "source": _join(_describe_source(run) for run in runs),
        "time": _describe_time(records),
        "runs": ", ".join(f"{n} {status}" for status, n in Counter(run.status for run in records).items()),
    }
    defaults = {
        name: format_value(value, name) for name, value in report_settings(ExperimentConfig(), selects=True).items()
    }
    shared = {
        name: format_value(results[name].iloc[0], name)
        for name in setting_columns(results)
        if results[name].nunique(dropna=False) == 1
    }
    is_default = {name: value == defaults.get(name) for name, value in shared.items()}
    return Setup(
        task=printable(_describe_task(runs)),
        facts=[(name, printable(text)) for name, text in facts.items() if text],
        warnings=_warn(runs),
        commands=_distinct(filter(None, map(typed_command, runs))),
        changed_settings=[(column_title(name), value) for name, value in shared.items() if not is_default[name]],
        default_settings=[(column_title(name), value) for name, value in shared.items() if is_default[name]],
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _join(values: Iterable[str]) -> str:
    """Join the distinct values; with several, each has its number of runs."""
    counts = Counter(filter(None, values))
    if len(counts) < 2:
        return next(iter(counts), "")
    return "; ".join(f"{value} ({n} run{'s' * (n > 1)})" for value, n in counts.items())


def _range(numbers: Iterable[int]) -> str:
    """Return "519" for equal numbers, "519 to 523" for others, "" without a number."""
    found = sorted(set(numbers))
    return " to ".join(f"{number:,}" for number in [*found[:1], *found[1:][-1:]])


def _describe_component(component: Component, group: str) -> str:
    """Return the last part of a component's target and its arguments."""
    values = [(name, value) for name, facts, value in walk(component) if facts.in_reports and value is not None]
    arguments = [
        f"{name} {format_value(value)}"
        for name, value in values
        if name != "_target_" and isinstance(value, bool | int | float | str)
    ]
    name = component.target.rpartition(".")[2]
    if group == "data":
        return " ".join([name, *(Path(str(value)).name for key, value in values if key == "root")])
    return f"{name} ({', '.join(arguments)})" if arguments else name


def _per_value(
    runs: Sequence[RunRecord],
    component: Callable[[ExperimentConfig], Component],
    group: str,
    count: Callable[[Sequence[RunRecord]], str],
) -> str:
    """Describe each distinct component of some runs, with numbers of its runs."""
    parts: dict[str, list[RunRecord]] = {}
    for run in runs:
        assert run.config is not None
        parts.setdefault(_describe_component(component(run.config), group), []).append(run)
    return "; ".join(": ".join(filter(None, [name, count(members)])) for name, members in parts.items())


def _data_facts(runs: Sequence[RunRecord]) -> list[dict[str, int]]:
    return [run.result["data"] for run in runs if isinstance(run.result.get("data"), dict)]


def _describe_task(runs: Sequence[RunRecord]) -> str:
    """Return the task in one line, such as "SmallCNN on digits, 20% of the training labels wrong, 5 epochs"."""
    configs = [run.config for run in runs if run.config is not None]
    if not configs:
        return ""
    networks = _distinct(config.model.target.rpartition(".")[2] for config in configs)
    data = _distinct(_describe_component(config.data, "data") for config in configs)
    return ", ".join(
        [
            f"{' or '.join(networks)} on {' or '.join(data)}",
            *_describe_noise(runs),
            f"{_range(config.epochs for config in configs)} epochs",
        ]
    )


def _describe_noise(runs: Sequence[RunRecord]) -> list[str]:
    """Return which fraction of the training labels is wrong, and how they were made wrong; nothing if none is known."""
    by_noise: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.config is not None and _data_facts([run]):
            by_noise.setdefault(_describe_component(run.config.noise, "noise"), []).append(run)
    rates: dict[str, float] = {}
    for noise, members in by_noise.items():
        facts = _data_facts(members)
        rates[noise] = 100 * sum(entry["wrong_labels"] for entry in facts) / sum(entry["train"] for entry in facts)
    names = _distinct(noise.partition(" ")[0] for noise, rate in rates.items() if rate)
    texts = _distinct(f"{rate:.3g}" for rate in sorted(rates.values()))
    return [f"{', '.join(texts)}% of the training labels wrong ({' or '.join(names)})"] if names else []


def _count_images(runs: Sequence[RunRecord]) -> str:
    facts = _data_facts(runs)
    if not facts:
        return f"numbers of images are {NOT_RECORDED}" if any(run.result for run in runs) else ""
    names = {"train": "training", "validation": "held-out validation", "test": "test"}
    counts = [
        f"{_range(entry[name] for entry in facts if name in entry)} {title}"
        for name, title in names.items()
        if any(name in entry for entry in facts)
    ]
    return f"{', '.join(counts)} images, {_range(entry['classes'] for entry in facts)} classes"


def _count_wrong_labels(runs: Sequence[RunRecord]) -> str:
    facts = _data_facts(runs)
    if not facts:
        return ""
    if not any(entry["wrong_labels"] for entry in facts):
        return "no training label is changed"
    rate = sum(entry["wrong_labels"] for entry in facts) / sum(entry["train"] for entry in facts)
    return (
        f"{_range(entry['wrong_labels'] for entry in facts)} of {_range(entry['train'] for entry in facts)} training"
        f" labels ({rate:.1%}) are wrong, {_describe_held_out_labels(runs)}, test labels are clean"
    )


def _describe_held_out_labels(runs: Sequence[RunRecord]) -> str:
    """Say which labels the held-out images have, with numbers of runs where these differ."""
    kinds = []
    for run in runs:
        assert run.config is not None
        held_out = run.config.data.val_fraction > 0
        kinds.append(f"held-out labels are {run.config.data.val_labels}" if held_out else "no images are held out")
    return _join(kinds)


def _count_parameters(runs: Sequence[RunRecord]) -> str:
    counts = _range(run.result["num_parameters"] for run in runs if "num_parameters" in run.result)
    return f"{counts} parameters" if counts else ""


def _describe_training(runs: Sequence[RunRecord]) -> str:
    configs = [run.config for run in runs if run.config is not None]
    steps = _range(run.result["step"] for run in runs if "step" in run.result)
    base = _distinct(_describe_component(config.optimizer.base, "optimizer") for config in configs)
    schedule = _distinct(_describe_component(config.schedule, "schedule") for config in configs)
    return (
        "; ".join(
            [
                f"{_range(config.epochs for config in configs)} epochs" + (f" ({steps} steps)" if steps else ""),
                f"batches of {_range(config.batch_size for config in configs)} images",
                f"base optimizer {' or '.join(base)}",
                f"schedule {' or '.join(schedule)}",
            ]
        )
        if configs
        else ""
    )


def _describe_precision(run: RunRecord) -> str:
    assert run.config is not None
    resolved, given = run.environment.get("resolved_precision"), run.config.precision
    if resolved is None:
        return f"precision={given}" if given != "auto" else f"precision=auto, the chosen format is {NOT_RECORDED}"
    return str(resolved) if given == resolved else f"{resolved} (precision={given})"


def _describe_hardware(run: RunRecord) -> str:
    found = run.environment
    if not found:
        return ""
    threads = found.get("threads")
    parts = [found.get("processor"), f"{threads} thread{'s' * (threads != 1)}" if threads else "",
             found.get("cpu_capability")]  # fmt: skip
    device = found.get("device")
    return f"{'trained on the CPU' if device == 'cpu' else device}: {', '.join(str(part) for part in parts if part)}"


def _describe_software(run: RunRecord) -> str:
    packages, python = run.environment.get("packages"), run.environment.get("python")
    if not isinstance(packages, dict):
        return ""
    names = ("sam-runner", "torch", "torchvision", "numpy")
    versions = [f"{name} {packages[name]}" for name in names if packages.get(name)]
    return ", ".join([*versions, *([f"Python {python}"] if python else [])])


def _describe_source(run: RunRecord) -> str:
    if not run.environment:
        return ""
    commit = run.environment.get("git_commit")
    if not commit:
        return "installed package, no git checkout"
    return f"commit {str(commit)[:12]}{' with uncommitted changes' if run.environment.get('git_changes') else ''}"


def _describe_time(records: Sequence[RunRecord]) -> str:
    """Return the dates at which runs ended, and how long training took."""
    ends = sorted(str(run.status_json["time"])[:16].replace("T", " ") for run in records if "time" in run.status_json)
    same_day = bool(ends) and ends[0][:10] == ends[-1][:10]
    days = f"runs ended {ends[0]} to {ends[-1][11:] if same_day else ends[-1]} UTC" if ends else ""
    finished = [run.result for run in records if run.status == "finished"]
    seconds = pd.Series(
        [result["training_seconds"] for result in finished if "training_seconds" in result], dtype=float
    )
    if len(seconds):
        training = (
            f"training took {format_duration(seconds.sum())}, summed over runs,"
            f" {format_duration(seconds.median())} a run (median)"
        )
        training += f", of {len(seconds)} of {len(finished)} runs" if len(seconds) < len(finished) else ""
    else:
        training = f"training time is {NOT_RECORDED}" if finished else ""
    memory = [result["peak_memory_bytes"] for result in finished if result.get("peak_memory_bytes")]
    peak = f"peak memory {max(memory) / 2**20:,.0f} MiB" if memory else ""
    return "; ".join(filter(None, [days, training, peak]))


def _warn(runs: Sequence[RunRecord]) -> list[str]:
    """Return a sentence for each difference between runs that may explain a difference of their metrics."""
    kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
        "commits": lambda found: found.get("git_commit") and str(found["git_commit"])[:12],
        "precisions": lambda found: found.get("resolved_precision"),
        "versions of torch": lambda found: (found.get("packages") or {}).get("torch"),
        "processors": lambda found: found.get("processor"),
        "devices": lambda found: found.get("device"),
    }
    warnings = []
    for name, read in kinds.items():
        members: dict[str, list[RunRecord]] = {}
        for run in runs:
            if value := read(dict(run.environment)):
                members.setdefault(str(value), []).append(run)
        if len(members) > 1:
            listed = ", ".join(f"{value} ({len(found)})" for value, found in members.items())
            most = max(members, key=lambda value: len(members[value]))
            named = "; ".join(f"{value}: {name_runs(found)}" for value, found in members.items() if value != most)
            warnings.append(printable(f"The runs have different {name}: {listed}. Runs of {named}."))
    dirty = [run for run in runs if run.environment.get("git_changes")]
    if dirty:
        named = f": {name_runs(dirty)}" if len(dirty) < len(runs) else ""
        text = f"{len(dirty)} of {len(runs)} runs used source code with uncommitted changes{named}."
        warnings.append(printable(text))
    return warnings


def name_runs(runs: Sequence[RunRecord]) -> str:
    """Return the names of the first runs, and how many more there are."""
    names = ", ".join(run.folder.name for run in runs[:MAX_NAMED])
    return f"{names} and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else names
