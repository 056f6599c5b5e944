"""Compare runs: a table of means over seeds as text, Markdown and CSV, plots as PNG, and report.html with all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from sam_runner.reports.aggregate import aggregate, group_over_seeds, informative_settings
from sam_runner.reports.results import load_results, metric_columns
from sam_runner.reports.tables import column_title, format_value, markdown_table, text_table
from sam_runner.utils.errors import InputError
from sam_runner.utils.files import write_atomically

LOWER_IS_BETTER = ("nll", "loss", "error", "gap")  # ends of metric names


def ranking_sign(metric: str) -> int:
    """Return 1 for a metric whose largest value is the best, -1 for one whose smallest value is."""
    return -1 if metric.endswith(LOWER_IS_BETTER) else 1


@dataclass(frozen=True)
class Report:
    """A comparison of runs.

    Attributes:
        results: All runs, as of `load_results`.
        metric: Metric that is compared, e.g. ``test/accuracy``.
    """

    results: pd.DataFrame
    metric: str = "test/accuracy"

    def __post_init__(self) -> None:
        """Refuse a metric that no run has.

        Raises:
            InputError: Where there are finished runs, and none has the metric.
        """
        if self.metrics and self.metric not in self.metrics:
            raise InputError(f"no run has the metric {self.metric}\n  accepted: {', '.join(self.metrics)}")

    @property
    def metrics(self) -> list[str]:
        """The metrics that runs have; empty before a run has finished."""
        return metric_columns(self.results)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The finished runs, as of `group_over_seeds`."""
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
    def selection_metric(self) -> str:
        """The metric that the best group is chosen by: validation accuracy where every group has one."""
        held_out = "validation/accuracy"
        if not self.metric.endswith("accuracy") or held_out not in self.runs:
            return self.metric
        return held_out if aggregate(self.runs, held_out)["n"].all() else self.metric

    @cached_property
    def best(self) -> int | None:
        """The group with the best mean of `selection_metric`; None where fewer than two groups have it."""
        if self.runs.empty:
            return None
        scores = ranking_sign(self.selection_metric) * aggregate(self.runs, self.selection_metric)["mean"].dropna()
        return int(scores.index.to_list()[scores.argmax()]) if len(scores) > 1 else None

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table of the report as text, one row a group; the best mean has a star."""
        rows = [
            {column_title(name): format_value(row[name], name) for name in self.settings}
            | {
                self.metric: f"{row['mean']:.4f}{'*' * (group == self.best)}" if row["n"] else "-",
                "95% interval": f"± {row['half_width']:.4f}" if row["n"] > 1 else "-",
                "n": str(row["n"]),
                "seeds": " ".join(map(str, self.runs.loc[self.runs["group"] == group, "seed"])),
            }
            for group, row in self.groups.to_dict("index").items()
        ]
        return pd.DataFrame(rows, dtype=str)

    @property
    def unfinished(self) -> list[str]:
        """A line for each run that has not finished: its status, its name and the first line of its error."""
        lines = []
        for run in self.results[self.results["status"] != "finished"].to_dict("records"):
            first_line = run["error"].partition("\n")[0][:160]
            name = run["job"] or Path(run["folder"]).name
            lines.append(": ".join(filter(None, [run["status"], name, first_line])))
        return lines

    @property
    def notes(self) -> list[str]:
        """Sentences that explain the table."""
        notes = ["Mean over seeds, 95% interval by Student's t."]
        if self.best is not None:
            notes.append(f"* Best by {self.selection_metric}.")
            if self.selection_metric.startswith("test/"):
                notes.append(
                    "Selected on the test set, so optimistic. Hold out validation data with data.val_fraction."
                )
        return notes

    def to_text(self) -> str:
        """Return the table as aligned text, with the notes and the unfinished runs."""
        table = [] if self.table.empty else [text_table(self.table), " ".join(self.notes)]
        return "\n".join([*table, *self.unfinished])

    def to_markdown(self) -> str:
        """Return the table as Markdown, with the notes and the unfinished runs."""
        table = "" if self.table.empty else f"{markdown_table(self.table)}\n\n{' '.join(self.notes)}"
        unfinished = "\n".join(f"- {line}" for line in self.unfinished)
        return "\n\n".join(filter(None, [table, unfinished])) + "\n"

    def to_csv(self) -> str:
        """Return one row a run: distinguishing settings, seed, status, metrics with all digits, and folder."""
        columns = [*self.settings, "seed", "status", *self.metrics, "folder"]
        return self.results.to_csv(columns=columns, index=False, lineterminator="\n")


def make_report(folders: Sequence[Path], metric: str = "test/accuracy") -> Report:
    """Read the runs in some folders and compare them.

    Raises:
        InputError: Where there is no run, or no finished run has the metric.
    """
    results = load_results(folders)
    if results.empty:
        raise InputError(f"no runs in {', '.join(map(str, folders))}\n  give a sweep's folder, or a folder of runs")
    return Report(results, metric)


def write_report(report: Report, folder: Path, title: str) -> Path:
    """Write report.html, report.md, report.csv and the plots as ``report-<name>.png``. Returns the path of the page."""
    from sam_runner.reports.page import render_page
    from sam_runner.reports.plots import draw_plots

    plots = [] if report.runs.empty else draw_plots(report)
    files = {
        "report.csv": report.to_csv().encode(),
        "report.md": report.to_markdown().encode(),
        "report.html": render_page(report, title, plots).encode(),
    }
    files |= {f"report-{plot.name}.png": plot.png for plot in plots}
    for name, content in files.items():
        write_atomically(folder / name, lambda handle, content=content: handle.write(content))  # type: ignore[misc]
    return folder / "report.html"


def write_sweep_report(folder: Path) -> None:
    """Print the table of a sweep and write its report; do nothing where the sweep has no job."""
    results = load_results([folder]) if folder.is_dir() else pd.DataFrame()
    if results.empty:
        return
    report = Report(results)
    print(f"\n{report.to_text()}")
    try:
        print(f"report: {write_report(report, folder, folder.name)}")
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
