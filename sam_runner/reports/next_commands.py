"""The commands that a report suggests next: values beyond the edge of a search, missing baselines, final runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pandas as pd

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.reports.comparison import Baseline, MissingBaseline, cost_column, find_missing_baselines
from sam_runner.reports.rerun import (
    change_setting,
    final_command,
    final_settings,
    same_sweep,
    train_command,
    typed_command,
)
from sam_runner.reports.results import RunRecord
from sam_runner.reports.selection import Choice, is_of_test_set
from sam_runner.reports.tables import column_title

if TYPE_CHECKING:
    from sam_runner.reports.report import Report

MIN_SEEDS = 3  # of the final runs; with two an interval is 3.6 times as wide


def suggest_commands(report: "Report") -> list[tuple[str, str]]:
    """Return commands that continue the comparison, as pairs of purpose and command.

    - If a chosen value is the smallest or largest of the search: a run with the next value beyond it.
    - If a group has no baseline of equal cost: the run that would be this baseline.
    - For each group that was chosen on validation images: its final runs. They are in one sweep, so that the report
      of the sweep compares them.
    - If the test set made a choice and the runs know the command of their sweep: this sweep with held-out images.
    """
    if report.runs.empty:
        return []
    commands = [_beyond_command(report, choice, name) for choice in report.choices for name in choice.at_edge]
    for missing in report.missing_baselines or _missing_at_equal_cost(report):
        if missing.base is not None and missing.length:
            purpose = f"{report.baseline} with {missing.length_text}, for --against {report.against or 'cost'}"
            record = report.first_record(missing.base)
            config = replace(cast("ExperimentConfig", record.config), **missing.length)
            commands.append((purpose, _same_sweep_command(report, record, config, missing.groups)))
    held_out = [choice for choice in report.choices if choice.metric.startswith(("validation/", "validation_ema/"))]
    commands += _final_commands(report, held_out) if held_out else []
    first = report.first_record(int(report.runs["group"].iloc[0]))
    is_sweep = bool({"-m", "--multirun"} & {*map(str, first.environment.get("command") or ())})
    if is_sweep and any(choice.is_optimistic and is_of_test_set(choice.metric) for choice in report.choices):
        commands.append(("choose on held-out images instead", f"{typed_command(first)} data.val_fraction=0.1"))
    return [(purpose, command) for purpose, command in commands if command]


def _missing_at_equal_cost(report: "Report") -> list[MissingBaseline]:
    """Return baselines that `--against cost` needs and no run has, of the chosen groups or all; empty if unknown."""
    unknown = report.runs[cost_column(report.runs, "cost")].isna().any()
    if report.baseline is None or report.against or unknown or report.with_equal_cost is None:
        return []
    settings = report.choice_settings if report.choices else report.groups[report.settings]
    return find_missing_baselines(report.runs, settings, Baseline(report.baseline.settings, "cost"))


def _beyond_command(report: "Report", choice: Choice, name: str) -> tuple[str, str]:
    """Return purpose and command of runs with the next value of a searched setting; "" where it cannot be typed."""
    value, record = float(report.rows[choice.group][name]), report.first_record(choice.group)
    searched = pd.Series([report.rows[group][name] for group in choice.searched])
    beyond = value * 2 if value == searched.max() else value / 2
    purpose = (
        f"{report.labels[choice.group]} is at the edge of the values searched: try {column_title(name)} {beyond:g}"
    )
    try:
        config = change_setting(cast("ExperimentConfig", record.config), name, beyond)
    except (TypeError, ValueError):
        return purpose, ""
    return purpose, "" if beyond == value else _same_sweep_command(report, record, config, choice.searched)


def _same_sweep_command(report: "Report", record: RunRecord, config: ExperimentConfig, groups: Sequence[int]) -> str:
    """Return the command that trains `config` with the seeds of some groups, in the sweep of a run."""
    return train_command(record, config, report.list_seeds(groups), same_sweep(record))


def _final_commands(report: "Report", choices: Sequence[Choice]) -> list[tuple[str, str]]:
    """Return purposes and commands of the final runs of some choices, on the seeds of the search, all in one sweep.

    Runs with a patience keep their held-out images, so the runs of the search are final runs too. If no seed is missing
    then, nothing is returned.
    """
    groups = [choice.group for choice in choices]
    seeds = report.list_seeds([group for choice in choices for group in choice.searched])
    are_trained = len(seeds) >= MIN_SEEDS and all(report.list_seeds([group]) == seeds for group in groups)
    num_added = max(0, MIN_SEEDS - len(seeds))
    seeds += range(seeds[-1] + 1, seeds[-1] + 1 + num_added)
    why = f", with {MIN_SEEDS} seeds for an interval" if num_added else ""
    records = {group: report.first_record(group) for group in groups}
    configs = {group: cast("ExperimentConfig", record.config) for group, record in records.items()}
    if are_trained and all(final_settings(config) == config for config in configs.values()):
        return []
    name = f"{records[groups[0]].folder.resolve().parent.name[-94:]}-final"
    commands = []
    for group, config in configs.items():
        has_patience = config.early_stopping.patience is not None
        images = (
            "with the held-out images that early_stopping.patience needs" if has_patience else "on all training images"
        )
        purpose = f"final runs of {report.labels[group]} {images}{why}"
        commands.append((purpose, final_command(records[group], seeds, name)))
    return commands
