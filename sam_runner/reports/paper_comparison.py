"""Compare runs with a table of the paper: ``sam-report --paper table4 FOLDER``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sam_runner.config.hydra.compose import compose_example
from sam_runner.paper.rows import Row, load_tables
from sam_runner.reports.aggregate import aggregate, group_over_seeds
from sam_runner.reports.results import RunRecord, read_runs, report_settings, results_frame
from sam_runner.reports.tables import column_title, escape_markdown, format_value, markdown_table, printable, text_table
from sam_runner.utils.errors import InputError

COLUMNS = ["row", "optimizer", "paper", "measured", "95% interval", "n", "differences"]
NOTE = (
    "Mean over seeds, 95% interval by Student's t. Differences: settings of the runs that the row's command does not"
    " have, with the row's value in parentheses."
)
IGNORED_DIFFERENCES = ("seed", "data.root", "noise.file")


@dataclass(frozen=True)
class PaperComparison:
    """A table of the paper beside the results of runs.

    Attributes:
        title: Title of the paper's table.
        table: Strings with the columns `COLUMNS`. A row and optimizer has one line for each choice of settings that was
            run, or one line without a measurement.
        unmatched: Folders of runs that belong to the table's experiments and to none of its rows.
        unfinished: A line for each run of these experiments that has not finished, and for each that cannot be read.
    """

    title: str
    table: pd.DataFrame
    unmatched: Sequence[str]
    unfinished: Sequence[str]

    def to_text(self) -> str:
        """Return the comparison as aligned text."""
        return "\n".join([self.title, text_table(self.table), *self._list_left_out()])

    def to_markdown(self) -> str:
        """Return the comparison as Markdown."""
        lines = "\n".join(f"- {escape_markdown(line)}" for line in self._list_left_out())
        return "\n\n".join(filter(None, [self.title, markdown_table(self.table), NOTE, lines])) + "\n"

    def _list_left_out(self) -> list[str]:
        return [*(f"in no row of the table: {folder}" for folder in self.unmatched), *self.unfinished]


def compare_with_paper(folders: Sequence[Path], table: str) -> PaperComparison:
    """Read the runs in some folders and compare them with a table of the paper.

    Args:
        folders: Folders of runs or sweeps.
        table: Name of the table in numbers.yaml: table1, table4, fig3, ...

    Raises:
        InputError: Where the table is unknown, or no run belongs to it.
    """
    tables = load_tables()
    if table not in tables:
        raise InputError(f"unknown table {table}\n  accepted: {', '.join(tables)}")
    rows = tables[table]
    names = {name for row in rows for name in (row.paper, row.name)}
    found = read_runs(folders)
    runs = [run for run in found if run.config is not None and run.config.paper in names]
    if not runs:
        raise InputError(
            f"no run in {', '.join(map(str, folders))} belongs to {table}\n"
            f"  train one: sam-train {' '.join(rows[0].command(rows[0].optimizers[0]))}"
        )
    lines, matched = list[list[str]](), set[Path]()
    for row in rows:
        fitting = [run for run in runs if run.config is not None and row.matches(run.config)]
        for optimizer in row.optimizers:
            chosen = [run for run in fitting if run.settings["optimizer"] == optimizer]
            matched |= {run.folder for run in chosen}
            lines += _compare_row(row, optimizer, chosen)
    unmatched = [printable(str(run.folder)) for run in runs if run.folder not in matched]
    belong = {run.folder for run in runs}
    left_out = [run for run in found if run.status != "finished" and (run.config is None or run.folder in belong)]
    unfinished = [
        printable(": ".join(filter(None, [run.status, str(run.folder), run.error.partition("\n")[0]])))
        for run in left_out
    ]
    return PaperComparison(rows[0].title, pd.DataFrame(lines, columns=COLUMNS), unmatched, unfinished)


def _compare_row(row: Row, optimizer: str, runs: Sequence[RunRecord]) -> Iterator[list[str]]:
    """Yield the lines of a row and optimizer."""
    number = row.number(optimizer) or "-"
    grouped = group_over_seeds(results_frame(runs))
    if grouped.empty:
        yield [row.name, optimizer, number, "-", "-", "0", f"{len(runs)} not finished" if runs else ""]
        return
    top1 = aggregate(grouped, "test/accuracy")
    top5 = aggregate(grouped, "test/accuracy_top5") if "/" in number and "test/accuracy_top5" in grouped else None
    for group, first_run in zip(top1.index, grouped.drop_duplicates("group").index, strict=True):
        n, mean, half_width = top1.loc[group, ["n", "mean", "half_width"]]
        measured = f"{_percent(mean, row.metric):.2f}"
        if top5 is not None and top5["n"][group]:
            measured += f" / {_percent(top5['mean'][group], row.metric):.2f}"
        yield [
            row.name, optimizer, number, measured if n else "-", f"± {100 * half_width:.2f}" if n > 1 else "-",
            f"{n:.0f}", "; ".join(describe_differences(row, optimizer, runs[first_run].settings)),
        ]  # fmt: skip


def _percent(accuracy: float, metric: str) -> float:
    return 100 * (accuracy if metric == "accuracy" else 1 - accuracy)


def describe_differences(row: Row, optimizer: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a run differs from the row's command, as "epochs 40 (200)".

    Args:
        row: The row.
        optimizer: Optimizer of the row, "sam" or "sgd".
        settings: Settings of the run, as of `report_settings`.
    """
    expected = report_settings(compose_example(row.command(optimizer)))
    keys = [key for key in sorted(expected.keys() | settings.keys()) if expected.get(key) != settings.get(key)]
    targets = tuple(key.removesuffix("_target_") for key in keys if key.endswith("._target_"))
    return [  # another _target_ has other arguments, which are not listed
        f"{column_title(key)} {format_value(settings.get(key), key, 'none')}"
        f" ({format_value(expected.get(key), key, 'none')})"
        for key in keys
        if (key.endswith("._target_") or not key.startswith(targets)) and key not in IGNORED_DIFFERENCES
    ]
