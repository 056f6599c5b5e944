"""Compare runs: tables of means over seeds, choices of searched settings, differences to a baseline, and sentences.

`write_report` writes all of it as HTML, Markdown, LaTeX and CSV with the plots beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sam_runner.reports.aggregate import (
    Difference,
    aggregate,
    group_over_seeds,
    informative_settings,
    ranking_sign,
    rows_by_group,
)
from sam_runner.reports.comparison import (
    COSTS,
    Baseline,
    Fit,
    compare,
    find_baselines,
    mean_costs,
    measure_fit,
    parse_baseline,
)
from sam_runner.reports.rerun import final_command, typed_command
from sam_runner.reports.results import RunRecord, metric_columns, read_distinct_runs, results_frame, setting_columns
from sam_runner.reports.selection import Choice, choose, held_out_metric, split_settings
from sam_runner.reports.setup import Setup, describe_setup
from sam_runner.reports.tables import (
    column_title,
    escape_markdown,
    format_value,
    latex_table,
    markdown_table,
    printable,
    settings_label,
    text_table,
)
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically

LEFT_ALIGNED = {"seeds", "chosen by", "contains 0", "fit"}
MAX_FINDINGS = 6  # largest number of compared groups that are described, a sentence each
MIN_SEEDS = 3  # of the final runs, so that they have an interval


@dataclass(frozen=True)
class Report:
    """A comparison of runs.

    Attributes:
        records: The runs and jobs, each distinct run once.
        metric: Metric that is compared, e.g. ``test/accuracy``.
        select: Searched settings; None chooses the hyperparameters that vary.
        by: Settings for each combination of which a choice is made; None takes all that are not selected.
        baseline_settings: Settings of the baseline, ``key=value,key=value``; None takes ``optimizer=sgd`` if there are
            such runs and others.
        against: "" compares at equal settings, "cost" at equal gradient evaluations, "seconds" at equal training time.
    """

    records: Sequence[RunRecord]
    metric: str = "test/accuracy"
    select: Sequence[str] | None = None
    by: Sequence[str] | None = None
    baseline_settings: str | None = None
    against: str = ""

    def __post_init__(self) -> None:
        """Refuse options that do not fit the runs.

        Raises:
            InputError: Where there are finished runs, and none has the metric, or an option names no setting of theirs.
        """
        if self.metrics and self.metric not in self.metrics:
            raise InputError(f"no run has the metric {self.metric}\n  accepted: {', '.join(self.metrics)}")
        if not self.runs.empty:
            _ = self.choices, self.baseline

    @cached_property
    def results(self) -> pd.DataFrame:
        """The table of all runs, as `load_results` returns it."""
        return results_frame(self.records)

    @property
    def metrics(self) -> list[str]:
        """The metrics that runs have; empty before a run has finished."""
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
    def searched(self) -> tuple[list[str], list[str]]:
        """The searched settings, and those for each combination of which a choice is made."""
        return split_settings(self.settings, self.select, self.by, setting_columns(self.runs))

    @cached_property
    def choices(self) -> list[Choice]:
        """The chosen groups; empty where no setting is searched."""
        select, by = self.searched
        choices = choose(self.runs, self.metric, select, by) if select else []
        return choices if any(choice.num_values > 1 for choice in choices) else []

    @cached_property
    def selection_metric(self) -> str:
        """The metric that the best group is chosen by: the validation set's where every group has one."""
        held_out = held_out_metric(self.metric)
        if held_out not in self.runs:
            return self.metric
        return held_out if aggregate(self.runs, held_out)["n"].all() else self.metric

    @cached_property
    def best(self) -> set[int]:
        """The groups with a star: those chosen among several values, otherwise the best by `selection_metric`."""
        if self.choices:
            return {choice.group for choice in self.choices if choice.num_values > 1}
        if self.runs.empty:
            return set()
        scores = ranking_sign(self.metric) * aggregate(self.runs, self.selection_metric)["mean"].dropna()
        return {int(scores.index.to_list()[scores.argmax()])} if len(scores) > 1 else set()

    @cached_property
    def baseline(self) -> Baseline | None:
        """The baseline; None where there is none."""
        text = self.baseline_settings
        if text is None:
            names = set(self.groups.get("optimizer", pd.Series(dtype=object)))
            text = "optimizer=sgd" if "sgd" in names and len(names) > 1 else None
        if text is None and self.against:
            raise InputError("--against needs a baseline, and no run has optimizer=sgd\n  give --baseline key=value")
        return None if text is None else Baseline(parse_baseline(text, self.groups[self.settings]), self.against)

    @cached_property
    def differences(self) -> dict[int, tuple[int, Difference]]:
        """The baseline of each group that has one, and the difference to it."""
        if self.baseline is None:
            return {}
        return compare(self.runs, self.metric, self.groups[self.settings], self.baseline)

    @cached_property
    def choice_differences(self) -> dict[int, tuple[int, Difference]]:
        """`differences` among the chosen groups only, whose searched settings may differ from the baseline's."""
        if self.baseline is None or not self.choices:
            return {}
        settings = pd.DataFrame([choice.settings for choice in self.choices], [c.group for c in self.choices])
        return compare(self.runs, self.metric, settings, self.baseline)

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
        rows = [
            {column_title(name): format_value(row[name], name) for name in self.settings}
            | self._number_cells(group)
            | {"seeds": " ".join(map(str, self.runs.loc[self.runs["group"] == group, "seed"]))}
            | self._difference_cells(group, self.differences)
            for group, row in self.rows.items()
        ]
        return pd.DataFrame(rows, dtype=str)

    @cached_property
    def choice_table(self) -> pd.DataFrame:
        """The table of the chosen groups as text; empty where no setting is searched."""
        select, by = self.searched
        rows = []
        for choice in self.choices:
            settings = self.rows[choice.group]
            warning = " (optimistic)" if choice.is_optimistic else ""
            rows.append(
                {column_title(name): format_value(choice.settings[name], name) for name in by}
                | {f"chosen {column_title(name)}": format_value(settings[name], name) for name in select}
                | {
                    "values searched": str(choice.num_values),
                    "chosen by": choice.metric + warning if choice.num_values > 1 else "-",
                }
                | self._number_cells(choice.group, star=False)
                | self._difference_cells(choice.group, self.choice_differences)
            )
        return pd.DataFrame(rows, dtype=str)

    def _number_cells(self, group: int, *, star: bool = True) -> dict[str, str]:
        """Return the cells of a group's metrics: the validation metric where there is one, the metric, interval, n."""
        n, mean, half_width = (self.rows[group][name] for name in ("n", "mean", "half_width"))
        mark = "*" if star and group in self.best else ""
        held_out = held_out_metric(self.metric)
        cells = {}
        if held_out != self.metric and held_out in self.runs:
            cells[held_out] = _number(aggregate(self.runs[self.runs["group"] == group], held_out)["mean"].iloc[0])
        return cells | {
            self.metric: f"{mean:.4f}{mark}" if n else "-",
            "95% interval": f"± {half_width:.4f}" if n > 1 else "-",
            "n": f"{n:.0f}",
        }

    def _difference_cells(self, group: int, differences: dict[int, tuple[int, Difference]]) -> dict[str, str]:
        """Return the cells of a group's difference to the baseline, its cost and its fit, as far as runs have them."""
        cells = {}
        if self.baseline is not None:
            _, found = differences.get(group, (None, None))
            is_baseline = self.baseline.contains(self.rows[group])
            cells[f"difference to {self.baseline}"] = "baseline" if is_baseline else _difference(found)
            cells["contains 0"] = {None: "-", True: "yes", False: "no"}[found.contains_zero if found else None]
            for cost in ("cost", "seconds"):
                costs = mean_costs(self.runs, cost)
                if costs.notna().any() and cost in (self.baseline.against or "cost"):
                    title = {"cost": "gradients", "seconds": "seconds"}[cost]
                    cells[title] = "-" if pd.isna(costs[group]) else f"{costs[group]:,.0f}"
        if any(str(fit) != "-" for fit in self.fits.values()):
            cells["fit"] = str(self.fits[group])
        return cells

    @property
    def unfinished(self) -> list[str]:
        """A line for each run that has not finished: its status, its name and the first line of its error."""
        lines = []
        for run in self.results[self.results["status"] != "finished"].to_dict("records"):
            first_line = run["error"].partition("\n")[0][:160]
            name = run["job"] or Path(run["folder"]).name
            lines.append(printable(": ".join(filter(None, [run["status"], name, first_line]))))
        return lines

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that explain the tables."""
        notes = ["Mean over seeds, 95% interval by Student's t."]
        if self.best:
            chosen_by = sorted({choice.metric for choice in self.choices}) or [self.selection_metric]
            notes.append(f"* Best by {' or '.join(chosen_by)}.")
        if any(choice.is_optimistic for choice in self.choices) or (
            self.best and not self.choices and self.selection_metric.startswith("test/")
        ):
            notes.append("Selected on the test set, so optimistic. Hold out validation data with data.val_fraction.")
        if self.baseline is not None:
            at = {"": "", "cost": " at equal gradient evaluations", "seconds": " at equal training time"}[self.against]
            notes.append(
                f"difference to {self.baseline}: mean{at} over pairs of runs with the same seed, and its 95% interval"
                " (paired t-test); if the interval does not contain 0, the difference is significant at the 5% level."
            )
            if len(self.differences) > 1:
                notes.append(
                    "Each interval is for one comparison: of many comparisons, some are significant by chance."
                )
        if "fit" in self.table:
            notes.append(
                "fit: accuracy on the training labels in the last epoch"
                + (", and the fraction of the wrong labels that are predicted (memorised)." if self._has_wrong else ".")
            )
        if "gradients" in self.table:
            notes.append("gradients: gradient evaluations of a run, its cost (--against cost compares at equal cost).")
        return [*notes, *self._missing_costs()]

    @property
    def _has_wrong(self) -> bool:
        return "train/memorised" in self.runs

    def _missing_costs(self) -> list[str]:
        """Return a sentence for a comparison at equal cost that cannot be made."""
        if not self.against or self.baseline is None:
            return []
        costs, name = mean_costs(self.runs, self.against), COSTS[self.against]
        unknown = int(self.runs[name].isna().sum())
        if unknown:
            return [f"{unknown} of {len(self.runs)} runs have no {name} in result.json: an earlier version made them."]
        others = [group for group in self.labels if not self.baseline.contains(self.rows[group])]
        found = find_baselines(self.groups[self.settings], self.baseline, costs)
        return [
            f"{self.labels[group]} has no baseline of equal cost ({costs[group]:,.0f} {name.replace('_', ' ')}): train"
            f" {self.baseline} with another number of epochs."
            for group in others
            if group not in found
        ]

    @cached_property
    def findings(self) -> list[str]:
        """What the runs show: the metric of each chosen group, and whether it beats the baseline.

        Without a search these are the groups that have a baseline, if they are few, otherwise the best group.
        """
        if self.runs.empty:
            return []
        differences = self.choice_differences or self.differences
        chosen = {choice.group: choice for choice in self.choices}
        bases = {base for base, _ in differences.values()}
        compared = list(differences) if len(differences) <= MAX_FINDINGS else []
        groups = [group for group in (chosen or compared or sorted(self.best)) if group not in bases]
        return [self._describe_group(group, chosen.get(group), differences.get(group)) for group in groups]

    def _describe_group(self, group: int, choice: Choice | None, compared: tuple[int, Difference] | None) -> str:
        text = self.labels[group]
        if choice is not None and choice.num_values > 1:
            names = " and ".join(map(column_title, self.searched[0]))
            optimistic = ", which is optimistic" if choice.is_optimistic else ""
            text += f" ({names} chosen from {choice.num_values} values by {choice.metric}{optimistic})"
        text += f": {self.metric} {self._mean(group)}"
        edge = ""
        if choice is not None and choice.at_edge:
            names = " and ".join(map(column_title, choice.at_edge))
            edge = f" The chosen {names} is at the edge of the values searched: search beyond it."
        if compared is None:
            return f"{text}.{edge}"
        base, difference = compared
        return f"{text}; {self.labels[base]}: {self._mean(base)}. {self._judge(group, base, difference)}{edge}"

    def _mean(self, group: int) -> str:
        n, mean, half_width = (self.rows[group][name] for name in ("n", "mean", "half_width"))
        return f"{mean:.4f}{f' ± {half_width:.4f}' if n > 1 else ''} (n = {n:.0f})"

    def _judge(self, group: int, base: int, difference: Difference) -> str:
        """Return sentences on a difference: its interval, whether it is significant, and whether a side has fitted."""
        n, mean, half_width = difference
        if n == 0:
            return "They have no seed in common, so the difference is not paired and not tested."
        text = f"Difference {mean:+.4f}"
        if difference.contains_zero is None:
            text += " for one seed: no interval, so significance is unknown; run more seeds."
        else:
            text += f", 95% interval {mean - half_width:+.4f} to {mean + half_width:+.4f} (n = {n} pairs)"
            better = "better" if ranking_sign(self.metric) * mean > 0 else "worse"
            text += (
                ": it contains 0, so the difference is not significant."
                if difference.contains_zero
                else f": it does not contain 0, so {self.labels[group]} is significantly {better}."
            )
        if self.fits[group].is_low and self.fits[base].is_low:
            meaning = (
                "the difference may only show which side learns faster"
                if difference.contains_zero is False
                else "expect no effect before longer training or a larger network fits them"
            )
            text += f" Neither side has fitted its training labels ({self.fits[group]}; {self.fits[base]}): {meaning}."
        return text

    @cached_property
    def next_commands(self) -> list[tuple[str, str]]:
        """What to type next, as purposes and commands.

        For a group chosen on validation images: its final runs. If a choice was made on the test set: the same search
        with held-out images.
        """
        if self.runs.empty:
            return []
        finished = {str(record.folder): record for record in self.records}
        if not self.choices:
            return []
        commands = []
        for choice in self.choices:
            runs = self.runs[self.runs["group"] == choice.group]
            record = finished[runs["folder"].iloc[0]]
            seeds = sorted(map(int, runs["seed"]))
            seeds += range(seeds[-1] + 1, seeds[-1] + 1 + max(0, MIN_SEEDS - len(seeds)))
            label = self.labels[choice.group]
            if choice.metric.startswith("validation/"):
                name = f"{record.folder.resolve().parent.name}-final"
                commands.append((f"final runs of {label} on all training images", final_command(record, seeds, name)))
        optimistic = [choice for choice in self.choices if choice.is_optimistic]
        if optimistic:
            command = typed_command(finished[self.runs["folder"].iloc[0]])
            commands.append(("choose on held-out images instead", f"{command} data.val_fraction=0.1"))
        return commands

    def to_text(self) -> str:
        """Return the tables as aligned text, with notes, findings, the unfinished runs and the next commands."""
        parts = [] if self.table.empty else [text_table(self.table), " ".join(self.notes)]
        parts += self.unfinished
        parts += [f"warning: {text}" for text in self.setup.warnings]
        if not self.choice_table.empty:
            parts += ["", text_table(self.choice_table)]
        if self.baseline is not None or self.choices:
            parts += self.findings
        return "\n".join([*parts, *(f"{purpose}:\n  {command}" for purpose, command in self.next_commands)])

    def to_markdown(self) -> str:
        """Return the findings, tables, notes, unfinished runs, the set-up and the next commands as Markdown."""
        parts = list[str]()
        if not self.table.empty:
            parts += map(escape_markdown, self.findings if self.baseline is not None or self.choices else [])
            parts += [] if self.choice_table.empty else [markdown_table(self.choice_table)]
            parts += [markdown_table(self.table), escape_markdown(" ".join(self.notes))]
        for lines in (self.unfinished, self.setup.warnings):
            parts.append("\n".join(f"- {escape_markdown(line)}" for line in lines))
        if self.setup.facts:
            parts.append(markdown_table(pd.DataFrame(self.setup.facts, columns=["set-up", ""])))
        parts += [f"{escape_markdown(purpose)}:\n\n```\n{command}\n```" for purpose, command in self.next_commands]
        return "\n\n".join(filter(None, parts)) + "\n"

    def to_latex(self) -> str:
        """Return the tables as LaTeX for the package booktabs; the notes are comments."""
        tables = [table for table in (self.choice_table, self.table) if not table.empty]
        notes = "".join(f"% {note}\n" for note in ["\\usepackage{booktabs}", *self.notes])
        return "\n".join(
            [notes, *(latex_table(table, {*map(str, table)} - LEFT_ALIGNED - self.text_columns) for table in tables)]
        )

    @property
    def text_columns(self) -> set[str]:
        """The columns of the tables that contain settings."""
        return {column_title(name) for name in self.settings}

    def to_csv(self) -> str:
        """Return one row a run: distinguishing settings, seed, status, metrics with all digits, and folder."""
        columns = [*self.settings, "seed", "status", *self.metrics, "folder"]
        return self.results.to_csv(columns=columns, index=False, lineterminator="\n")

    def to_table_csv(self) -> str:
        """Return one row a group with all digits: settings, n, mean, half_width, and the difference to the baseline."""
        rows = {
            group: {
                "baseline": self.labels[base],
                "pairs": d.n,
                "difference": d.mean,
                "difference_half_width": d.half_width,
            }
            for group, (base, d) in self.differences.items()
        }
        columns = ["baseline", "pairs", "difference", "difference_half_width"] if self.baseline is not None else []
        table = self.groups.join(pd.DataFrame.from_dict(rows, orient="index", columns=columns))
        return table.to_csv(index=False, lineterminator="\n")


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.4f}"


def _difference(found: Difference | None) -> str:
    if found is None or found.n == 0:
        return "-"
    return f"{found.mean:+.4f}" + (f" ± {found.half_width:.4f}" if found.n > 1 else "")


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
        by: Settings for each combination of which a choice is made.
        baseline: Settings of the baseline.
        against: "", "cost" or "seconds".

    Raises:
        InputError: If there is no run, no finished run has the metric, or an option does not fit the runs.
    """
    records = read_distinct_runs(folders)
    if not records:
        raise InputError(f"no runs in {', '.join(map(str, folders))}\n  give a sweep's folder, or a folder of runs")
    return Report(records, metric, select, by, baseline, against)


def write_report(report: Report, folder: Path, title: str) -> Path:
    """Write the report into a folder.

    The files are report.html, report.md, report.tex, report.csv (one row a run), report-table.csv (one row a group),
    and each plot as ``report-<name>.png``, ``.svg`` and ``.pdf``.

    Returns:
        The path of the page.
    """
    from sam_runner.reports.page import render_page
    from sam_runner.reports.plots import draw_plots

    plots = [] if report.runs.empty else draw_plots(report)
    files = {
        "report.csv": report.to_csv(),
        "report-table.csv": report.to_table_csv(),
        "report.md": report.to_markdown(),
        "report.tex": report.to_latex(),
        "report.html": render_page(report, title, plots, folder),
    }
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in files.items()}
    contents |= {f"report-{plot.name}.{kind}": content for plot in plots for kind, content in plot.files.items()}
    for name, content in contents.items():
        write_atomically(folder / name, _writer(content))
    return folder / "report.html"


def _writer(content: bytes) -> Callable[..., object]:
    return lambda handle: handle.write(content)


def write_sweep_report(folder: Path) -> None:
    """Print the table of a sweep and write its report; do nothing where the sweep has no job."""
    records = read_distinct_runs([folder]) if folder.is_dir() else []
    if not records:
        return
    report = Report(records)
    print(f"\n{report.to_text()}")
    try:
        print(f"report: {write_report(report, folder, folder.name)}")
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
