"""Compare runs: means over seeds, choices of searched settings, and differences to a baseline.

`Report` computes these; `output` writes them into files. A group is a set of runs that differ in the seed only.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sam_runner.reports import group_tables, next_commands, sentences
from sam_runner.reports.aggregate import (
    WITHOUT_SAM,
    Estimate,
    aggregate,
    find_replacements,
    group_over_seeds,
    informative_settings,
    paired_difference,
    ranking_sign,
    rows_by_group,
    values_by_seed,
)
from sam_runner.reports.comparison import (
    COSTS,
    Baseline,
    Fit,
    MissingBaseline,
    compare,
    cost_column,
    find_baselines,
    find_missing_baselines,
    mean_costs,
    measure_fit,
    parse_baseline,
)
from sam_runner.reports.results import (
    UNREADABLE,
    RunRecord,
    metric_columns,
    read_distinct_runs,
    results_frame,
    setting_columns,
)
from sam_runner.reports.selection import Choice, choose, held_out_metric, split_settings
from sam_runner.reports.setup import Setup, describe_setup
from sam_runner.reports.tables import (
    column_title,
    escape_markdown,
    markdown_table,
    printable,
    settings_label,
    text_table,
)
from sam_runner.runs.folder import NOT_STARTED
from sam_runner.utils.errors import InputError

if TYPE_CHECKING:
    from pandas.core.groupby import SeriesGroupBy


@dataclass(frozen=True)
class Report:
    """A comparison of runs.

    Attributes:
        records: The runs and jobs, each distinct run once.
        metric: Metric that is compared, e.g. ``test/accuracy``.
        select: Searched settings. None: those of `SEARCHED_SETTINGS` whose values differ between the runs.
        by: Settings for which the searched settings are chosen separately: once for each combination of their values.
            None: all settings that differ between the runs and are not in `select`.
        baseline_settings: Settings of the baseline, ``key=value,key=value``. None: ``optimizer=sgd``, or
            ``optimizer=none`` if no run has ``optimizer=sgd``; no baseline if all runs have the same optimizer.
        against: How a run is compared with the baseline. "": at equal settings; "cost": at equal gradient evaluations;
            "seconds": at equal training time.
        given: The folders that were given for the report, in which its runs were found.
        repeats: Finished runs with the settings and the seed of a run in `records`, and other metrics.
    """

    records: Sequence[RunRecord]
    metric: str = "test/accuracy"
    select: Sequence[str] | None = None
    by: Sequence[str] | None = None
    baseline_settings: str | None = None
    against: str = ""
    given: Sequence[Path] = ()
    repeats: Sequence[RunRecord] = ()

    def __post_init__(self) -> None:
        """Refuse options that do not fit the runs.

        Raises:
            InputError: If runs have finished and none has the metric, an option names a setting that no run has, or
                values are to be chosen by a metric that says nothing about what is better.
        """
        if self.metrics and self.metric not in self.metrics:
            raise InputError(f"no run has the metric {self.metric}\n  accepted: {', '.join(self.metrics)}")
        if self.metrics and self.select is not None and not ranking_sign(self.metric):
            raise InputError(
                f"--select {','.join(self.select)}: no value of {self.metric} is better than another, so it cannot"
                f" choose\n  leave out --select, or compare by one of: {', '.join(filter(ranking_sign, self.metrics))}"
            )
        if not self.runs.empty:
            _ = self.choices, self.differences, self.choice_differences

    @cached_property
    def results(self) -> pd.DataFrame:
        """The table of all runs, as `load_results` returns it."""
        return results_frame(self.records)

    @property
    def metrics(self) -> list[str]:
        """The metrics of the finished runs."""
        return metric_columns(self.results)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The finished runs, as `group_over_seeds` returns them."""
        return group_over_seeds(self.results)

    @cached_property
    def settings(self) -> list[str]:
        """The settings that distinguish the groups."""
        return informative_settings(self.runs)

    @cached_property
    def groups(self) -> pd.DataFrame:
        """The distinguishing settings of each group, and n, mean and half_width of the metric, indexed by group."""
        settings = self.runs.drop_duplicates("group").set_index("group")[self.settings]
        return settings.join(aggregate(self.runs, self.metric)) if len(settings) else settings

    @cached_property
    def labels(self) -> dict[int, str]:
        """A text for each group that distinguishes it, such as "sam, rho 0.05"."""
        rows = rows_by_group(self.groups[self.settings])
        return {group: settings_label(row) or "all runs" for group, row in rows.items()}

    @cached_property
    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of `groups` by group."""
        return rows_by_group(self.groups)

    @cached_property
    def search_settings(self) -> tuple[list[str], list[str]]:
        """The searched settings (`select`), and the settings for which they are chosen separately (`by`)."""
        return split_settings(self.settings, self.select, self.by, setting_columns(self.runs))

    @cached_property
    def choices(self) -> list[Choice]:
        """The chosen groups; empty where no setting is searched, or no value of the metric is better than another."""
        select, by = self.search_settings
        choices = choose(self.runs, self.metric, select, by) if select else []
        return choices if any(choice.num_values > 1 for choice in choices) else []

    @cached_property
    def selection(self) -> list[Choice]:
        """The choices whose groups have a star in the table, if they were chosen among several groups.

        With a search these are `choices`. Without one it is the best group, or no group if the runs have several
        optimizers.
        """
        return self.choices or ([] if "optimizer" in self.settings else self.ranking)

    @cached_property
    def ranking(self) -> list[Choice]:
        """The best of all groups as the only entry; empty if there are fewer than two groups, or none is the best."""
        choices = [] if self.runs.empty else choose(self.runs, self.metric, self.settings, [])
        return [choice for choice in choices if choice.num_values > 1]

    @property
    def best(self) -> set[int]:
        """The groups with a star: each was chosen among several."""
        return {choice.group for choice in self.selection if choice.num_values > 1}

    @cached_property
    def baseline(self) -> Baseline | None:
        """The baseline; None where there is none."""
        if self.baseline_settings is not None:
            settings = parse_baseline(self.baseline_settings, self.groups[self.settings])
            return Baseline(settings, self.against)
        if self._default_baseline is not None and not self.no_default_baseline:
            return self._default_baseline
        if self.against:
            reason = " ".join(self.no_default_baseline) or "no run has optimizer=sgd or optimizer=none"
            raise InputError(f"--against needs a baseline: {reason}\n  give --baseline key=value")
        return None

    @cached_property
    def _default_baseline(self) -> Baseline | None:
        names = set(self.groups.get("optimizer", pd.Series(dtype=object)))
        base = next((name for name in WITHOUT_SAM if name in names), None)
        return Baseline({"optimizer": base}, self.against) if base is not None and len(names) > 1 else None

    @cached_property
    def no_default_baseline(self) -> list[str]:
        """Why the runs without SAM cannot be the baseline; empty if they can, or if there are no such runs."""
        baseline = self._default_baseline
        if baseline is None or self.baseline_settings is not None:
            return []
        try:
            costs = mean_costs(self.runs, self.against)
            find_baselines(self.groups[self.settings], baseline, costs)
            find_baselines(self.choice_settings, baseline, costs)
        except InputError as error:
            return ["No baseline: " + str(error).replace("\n  ", ", ") + "."]
        return []

    @cached_property
    def differences(self) -> dict[int, tuple[int, Estimate]]:
        """The baseline and the difference to it, for each group that has a baseline."""
        if self.baseline is None:
            return {}
        return compare(self.runs, self.metric, self.groups[self.settings], self.baseline)

    @cached_property
    def with_equal_cost(self) -> set[int] | None:
        """The groups that have a baseline of equal cost; None if a group has several."""
        if self.baseline is None:
            return set()
        at_cost = Baseline(self.baseline.settings, "cost")
        try:
            return {*find_baselines(self.groups[self.settings], at_cost, mean_costs(self.runs, "cost"))}
        except InputError:
            return None

    @cached_property
    def folders(self) -> list[str]:
        """The absolute paths of the folders that contain the run folders; of a job without a run its sweep's folder."""
        parents = (record.folder.parent for record in self.records)
        return sorted({os.path.abspath(path.parent if path.name == NOT_STARTED else path) for path in parents})

    @property
    def given_folders(self) -> list[str]:
        """The absolute paths of the folders that were given for the report."""
        return [os.path.abspath(folder) for folder in self.given] or self.folders

    @property
    def name(self) -> str:
        """A name of the comparison for labels, made of letters, digits and hyphens."""
        parts = [Path(folder).name for folder in self.folders]
        parts += [self.metric] if self.metric != "test/accuracy" else []
        return re.sub(r"[^A-Za-z0-9]+", "-", "-".join([*parts, self.against])).strip("-") or "runs"

    @cached_property
    def choice_differences(self) -> dict[int, tuple[int, Estimate]]:
        """As `differences`, between the chosen groups; the searched settings of group and baseline may differ.

        A baseline that names a searched setting is not a choice: then these are the `differences` of the chosen groups.
        """
        if self.baseline is None or not self.choices:
            return {}
        if self.baseline.settings.keys() & {*self.search_settings[0]}:
            return {c.group: self.differences[c.group] for c in self.choices if c.group in self.differences}
        return compare(self.runs, self.metric, self.choice_settings, self.baseline)

    @cached_property
    def missing_baselines(self) -> list[MissingBaseline]:
        """The baselines that are missing for a comparison at equal cost; empty if the cost of a run is unknown."""
        if self.baseline is None or not self.against or self.runs[cost_column(self.runs, self.against)].isna().any():
            return []
        return find_missing_baselines(self.runs, self.groups[self.settings], self.baseline)

    def early_difference(self, group: int, base: int) -> Estimate | None:
        """Return the difference of two groups at the epochs of early stopping; None if no images were held out."""
        return None if self._early_values is None else paired_difference(self._early_values, group, base)

    @cached_property
    def _early_values(self) -> "SeriesGroupBy[Any, Any] | None":
        """The metric at the epochs of early stopping by group and seed; None if no images were held out."""
        tag = f"best/{self.metric}"
        return values_by_seed(self.runs, tag) if tag in self.runs else None

    @property
    def early_metrics(self) -> str:
        """The metrics that chose the epochs of early stopping, e.g. ``validation/accuracy``."""
        chosen = {str(run.result.get("selected_by")) for run in self.records if run.best_metrics}
        return " or ".join(sorted(chosen))

    @property
    def last_epoch(self) -> str:
        """The epoch of the final metrics in words: the best with early_stopping.patience, otherwise the last."""
        configs = [record.config for record in self.records if record.config is not None]
        has_patience = any(config.early_stopping.patience is not None for config in configs)
        return "last epoch (best epoch with early_stopping.patience)" if has_patience else "last epoch"

    def cost_ratio(self, group: int, base: int) -> float:
        """Return the cost of `group` divided by that of `base`; NaN if it is unknown."""
        costs = self.costs["cost"]
        return costs[group] / costs[base] if costs[base] else math.nan

    def total_cost(self, groups: Sequence[int], kind: str) -> float:
        """Return the cost of all runs of some groups; NaN if one is unknown. `kind` is a value of --against."""
        name = cost_column(self.runs, kind)
        return float(self.runs.loc[self.runs["group"].isin(groups), name].sum(skipna=False))

    @property
    def choice_settings(self) -> pd.DataFrame:
        """The settings of each choice, indexed by group."""
        return pd.DataFrame([choice.settings for choice in self.choices], [choice.group for choice in self.choices])

    @cached_property
    def estimates(self) -> dict[str, dict[int, Estimate]]:
        """Mean and interval of each group, by metric: compared metric, validation set, early stopping."""
        tags = {self.metric, held_out_metric(self.metric), f"best/{self.metric}"}
        return {
            tag: {group: _estimate(row) for group, row in rows_by_group(aggregate(self.runs, tag)).items()}
            for tag in tags
            if tag in self.runs
        }

    @cached_property
    def costs(self) -> dict[str, dict[int, float]]:
        """The mean cost of each group by kind (the values of --against); NaN if a run has not recorded it."""
        means = {kind: mean_costs(self.runs, kind) for kind in COSTS}
        return {kind: {group: float(mean[group]) for group in self.labels} for kind, mean in means.items()}

    @cached_property
    def fits(self) -> dict[int, Fit]:
        """How far each group has fitted its training labels."""
        return measure_fit(self.runs, [int(group) for group in self.groups.index])

    @cached_property
    def setup(self) -> Setup:
        """How the runs were made."""
        return describe_setup(self.records, self.results)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table of all groups as text, one row a group; a star marks `best`."""
        return group_tables.tabulate_groups(self)

    @cached_property
    def choice_table(self) -> pd.DataFrame:
        """The table of the chosen groups as text; empty where no setting is searched."""
        return group_tables.tabulate_choices(self)

    @cached_property
    def replaced_runs(self) -> list[tuple[RunRecord, list[str]]]:
        """The finished runs that do not count, each with the settings in which the run that counts instead differs."""
        rows = find_replacements(self.results)
        return [(self.records[row], self.records[row].differences(self.records[kept])) for row, kept in rows.items()]

    @property
    def unfinished_runs(self) -> list[str]:
        """A line for each run that has not finished: its status, its name and the first line of its error."""
        lines = []
        for run in self.results[self.results["status"] != "finished"].to_dict("records"):
            first_line = run["error"].partition("\n")[0][: None if run["status"] == UNREADABLE else 160]
            name = run["job"] or Path(run["folder"]).name
            lines.append(printable(": ".join(filter(None, [run["status"], name, first_line]))))
        return lines

    @cached_property
    def terms(self) -> list[tuple[str, str]]:
        """The terms in the tables, each with its meaning."""
        return [] if self.table.empty else sentences.define_terms(self)

    @cached_property
    def remarks(self) -> list[str]:
        """Sentences that a reader of the tables has to know."""
        return [] if self.table.empty else sentences.write_remarks(self)

    @property
    def notes(self) -> list[str]:
        """The remarks and the terms, a sentence each."""
        return [*self.remarks, *(f"{term}: {meaning}." for term, meaning in self.terms)]

    @cached_property
    def findings(self) -> list[str]:
        """Sentences on each chosen or compared group: what the runs show."""
        return sentences.describe_findings(self)

    def first_record(self, group: int) -> RunRecord:
        """Return the first run of a group."""
        return self.records[self._first_rows[group]]

    @cached_property
    def _first_rows(self) -> dict[int, int]:
        """The position in `records` of the first run of each group."""
        first = self.runs.drop_duplicates("group")
        return dict(zip(first["group"].tolist(), first.index.tolist(), strict=True))

    def list_seeds(self, groups: Sequence[int]) -> list[int]:
        """Return the seeds of some groups, ascending."""
        return sorted({int(seed) for seed in self.runs.loc[self.runs["group"].isin(groups), "seed"]})

    @cached_property
    def next_commands(self) -> list[tuple[str, str]]:
        """Commands that continue the comparison, as pairs of purpose and command."""
        return next_commands.suggest_commands(self)

    def to_text(self) -> str:
        """Return the tables as aligned text, with notes, findings, the unfinished runs and the next commands."""
        parts = [] if self.table.empty else [text_table(self.table), *self.notes]
        parts += self.unfinished_runs
        parts += [f"warning: {text}" for text in self.setup.warnings]
        if not self.choice_table.empty:
            parts += ["", text_table(self.choice_table)]
        if self.baseline is not None or self.choices:
            parts += self.findings
        return "\n".join([*parts, *(f"{purpose}:\n  {command}" for purpose, command in self.next_commands)])

    def to_markdown(self) -> str:
        """Return the findings, tables, notes, unfinished runs, the set-up and the next commands as Markdown."""
        parts = [escape_markdown(f"{self.setup.task}.")] if self.setup.task else []
        if not self.table.empty:
            parts += map(escape_markdown, self.findings if self.baseline is not None or self.choices else [])
            parts += [] if self.choice_table.empty else [markdown_table(self.choice_table)]
            parts += [markdown_table(self.table), "\n".join(f"- {escape_markdown(note)}" for note in self.notes)]
        for lines in (self.unfinished_runs, self.setup.warnings):
            parts.append("\n".join(f"- {escape_markdown(line)}" for line in lines))
        if self.setup.facts:
            parts.append(markdown_table(pd.DataFrame(self.setup.facts, columns=["set-up", ""])))
        parts += [f"{escape_markdown(purpose)}:\n\n```\n{command}\n```" for purpose, command in self.next_commands]
        return "\n\n".join(filter(None, parts)) + "\n"

    @property
    def text_columns(self) -> set[str]:
        """The titles of the columns that contain settings."""
        return {column_title(name) for name in self.settings}

    def to_csv(self) -> str:
        """Return one row a run; docs/reports.md lists the columns."""
        names = {**dict.fromkeys(COSTS.values()), cost_column(self.runs, "cost"): None}
        costs = [name for name in names if self.results[name].notna().any()]
        commit = ["commit"] if self.results["commit"].notna().any() else []
        columns = [*self.settings, "seed", "status", *self.metrics, *costs, *commit, "folder"]
        return self.results.to_csv(columns=columns, index=False, lineterminator="\n")

    def to_table_csv(self) -> str:
        """Return one row a group with all digits; docs/reports.md lists the columns."""
        rows = {group: group_tables.list_numbers(self, group) for group in self.rows}
        columns = pd.DataFrame.from_dict(rows, orient="index").dropna(axis="columns", how="all")
        return self.groups.join(columns).to_csv(index=False, lineterminator="\n")


def _estimate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(int(row["n"]), float(row["mean"]), float(row["half_width"]))


def make_report(
    folders: Sequence[Path],
    metric: str = "test/accuracy",
    *,
    select: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    baseline: str | None = None,
    against: str = "",
) -> Report:
    """Read the runs in some folders and compare them.

    Args:
        folders: Folders of runs or sweeps.
        metric: See `Report`, also for the arguments below.
        select: Searched settings.
        by: Settings for which the searched settings are chosen separately.
        baseline: Settings of the baseline.
        against: "", "cost" or "seconds".

    Raises:
        InputError: If there is no run, no finished run has the metric, or an option does not fit the runs.
    """
    records, repeats = read_distinct_runs(folders)
    if not records:
        raise InputError(f"no runs in {', '.join(map(str, folders))}\n  give a sweep's folder, or a folder of runs")
    return Report(records, metric, select, by, baseline, against, folders, repeats)
