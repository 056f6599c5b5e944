"""Runs beside the numbers that the paper has for them: ``sam-report paper=table4 FOLDER``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_runner.config.hydra.compose import compose_example
from sam_runner.paper.rows import Row, tables
from sam_runner.reports.results import Record, column_title, format_value, groups, interval, records, report_settings
from sam_runner.utils.errors import InputError

COLUMNS = ["row", "optimizer", "paper", "here", "95% interval", "n", "what differs from the paper's"]


@dataclass(frozen=True)
class Comparison:
    """One table of the paper, and what some runs say to it.

    Attributes:
        title: Of the paper's table.
        lines: A line of `COLUMNS` for each row, optimizer and choice of settings that has been run, and one for each
            row and optimizer that has not.
        strangers: Runs of the table's experiments that are in none of its rows.
    """

    title: str
    lines: Sequence[Sequence[str]]
    strangers: Sequence[str]


def compared(folders: Sequence[Path], table: str) -> Comparison:
    """Read the runs below some folders and put them beside a table.

    Args:
        folders: Of runs or sweeps.
        table: As in paper.yaml: table1, table4, fig3, ...

    Raises:
        InputError: Where there is no such table, or no run of it.
    """
    known = tables()
    if table not in known:
        raise InputError(f"paper={table} is no table that is known\n  accepted: {', '.join(known)}")
    rows = known[table]
    runs = [
        run for run in records(folders) if run.paper and run.paper in {x for row in rows for x in (row.paper, row.name)}
    ]
    if not runs:
        raise InputError(
            f"no run in {', '.join(map(str, folders))} is one of {table}\n"
            f"  it is made with: {rows[0].words}, and what the others say in sam_runner/paper/numbers.yaml"
        )
    lines = [
        line
        for row in rows
        for line in _lines(row, [run for run in runs if run.config is not None and row.fits(run.config)])
    ]
    strangers = [str(run.folder) for run in runs if not any(_is_of(row, run) for row in rows)]
    return Comparison(rows[0].title, lines, strangers)


def _is_of(row: Row, run: Record) -> bool:
    return run.config is not None and row.fits(run.config) and run.settings["optimizer"] in row.optimizers


def _lines(row: Row, runs: Sequence[Record]) -> Iterator[list[str]]:
    for optimizer in row.optimizers:
        number = row.number(optimizer) or "-"
        of_it = [run for run in runs if run.settings["optimizer"] == optimizer]
        found = groups(of_it)
        if not found:
            state = f"{len(of_it)} not finished" if of_it else ""
            yield [row.name, optimizer, number, "-", "-", "0", state]
        for group in found:
            values = [_in_percent(value, row.metric) for value in group.values("test/accuracy")]
            middle, half = interval(values) if values else (math.nan, math.nan)
            top5 = [_in_percent(value, row.metric) for value in group.values("test/accuracy_top5")]
            beside = f" / {interval(top5)[0]:.2f}" if top5 and "/" in number else ""
            yield [
                row.name, optimizer, number, f"{middle:.2f}{beside}" if values else "-",
                "-" if math.isnan(half) else f"± {half:.2f}",
                str(len(values)), "; ".join(differences(row, optimizer, group.runs[0].settings)),
            ]  # fmt: skip


def _in_percent(accuracy: float, metric: str) -> float:
    return 100 * (accuracy if metric == "accuracy" else 1 - accuracy)


def differences(row: Row, optimizer: str, settings: Mapping[str, Any]) -> list[str]:
    """What a run has otherwise than the row's own command, as ``key here (there)``.

    Args:
        row: Of the paper.
        optimizer: sam or sgd.
        settings: Of the run, by their short names.
    """
    theirs = _own_settings(row, optimizer)
    keys = [key for key in sorted(theirs.keys() | settings.keys()) if theirs.get(key) != settings.get(key)]
    others = {key.removesuffix("_target_") for key in keys if key.endswith("._target_")}  # its other keys follow
    told = [key for key in keys if key.endswith("._target_") or not key.startswith(tuple(others))]
    return [
        f"{column_title(key)} {_shown(settings, key)} ({_shown(theirs, key)})"
        for key in told
        if key not in ("seed", "data.root", "noise.file")
    ]


def _shown(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "none" if value is None else format_value(value, key)


def _own_settings(row: Row, optimizer: str) -> dict[str, Any]:
    """Return the settings that the row's own command makes, as reports show them."""
    words = [word for word in row.words.split() if not word.startswith("optimizer=")]
    typed = [word for word in row.typed.split() if optimizer == "sam" or not word.startswith("rho=")]
    return report_settings(compose_example([*words, f"optimizer={optimizer}", *typed]))


def as_text(comparison: Comparison) -> str:
    """Columns of equal width."""
    rows = [COLUMNS, *comparison.lines]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([comparison.title, *lines, *(f"in no row of the table: {name}" for name in comparison.strangers)])


def as_markdown(comparison: Comparison) -> str:
    """A table of Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *comparison.lines]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    strangers = [f"- in no row of the table: {name}" for name in comparison.strangers]
    note = "mean over seeds, 95% interval by Student's t; in parentheses what the row's own command has"
    return "\n".join([comparison.title, "", *lines, "", note, *([""] if strangers else []), *strangers]) + "\n"
