"""The tables of a report: one row for each group of runs, or one row for each choice of searched settings."""

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pandas as pd

from sam_runner.reports.aggregate import Estimate
from sam_runner.reports.comparison import COSTS, FIT_METRICS, cost_column
from sam_runner.reports.selection import held_out_metric
from sam_runner.reports.tables import column_title, format_p_value, format_value

if TYPE_CHECKING:
    from sam_runner.reports.report import Report

LEFT_ALIGNED = {"seeds", "chosen by", "contains 0"}  # columns of text; all other columns but settings hold numbers
COST_COLUMNS = {  # title of the column of a cost
    "gradient_evaluations": "gradients",
    "images_backward": "images backward",
    "training_seconds": "seconds",
}
FIT_COLUMNS = {"fit": "accuracy", "right": "right", "memorised": "memorised"}  # title: attribute of `Fit`


def tabulate_groups(report: "Report") -> pd.DataFrame:
    """Return the table of all groups as text, one row a group; a star marks the best groups (`Report.best`)."""
    seeds = report.runs.groupby("group")["seed"].agg(lambda found: " ".join(map(str, found)))
    rows = [
        {column_title(name): format_value(row[name], name) for name in report.settings}
        | _number_cells(report, group)
        | {"seeds": seeds[group]}
        | _difference_cells(report, group, report.differences)
        for group, row in report.rows.items()
    ]
    return pd.DataFrame(rows, dtype=str)


def tabulate_choices(report: "Report") -> pd.DataFrame:
    """Return the table of the chosen groups as text; empty where no setting is searched."""
    select, by = report.search_settings
    rows = []
    for choice in report.choices:
        settings = report.rows[choice.group]
        warning = " (optimistic)" if choice.is_optimistic else ""
        rows.append(
            {column_title(name): format_value(choice.settings[name], name) for name in by}
            | {f"chosen {column_title(name)}": format_value(settings[name], name) for name in select}
            | {
                "values searched": str(choice.num_values),
                "chosen by": choice.metric + warning if choice.num_values > 1 else "one value",
            }
            | _number_cells(report, choice.group, star=False)
            | _difference_cells(report, choice.group, report.choice_differences)
        )
    return pd.DataFrame(rows, dtype=str)


def _number_cells(report: "Report", group: int, *, star: bool = True) -> dict[str, str]:
    """Return the cells with a group's metrics: validation metric (if there is one), compared metric, interval, n."""
    found, mark = report.estimates[report.metric][group], "*" if star and group in report.best else ""
    held_out = held_out_metric(report.metric)
    cells = {}
    if held_out != report.metric and held_out in report.estimates:
        cells[held_out] = _number(report.estimates[held_out][group].mean)
    return cells | {
        report.metric: f"{found.mean:.4f}{mark}" if found.n else "-",
        "95% interval": f"± {found.half_width:.4f}" if found.n > 1 else "-",
        "n": f"{found.n}",
    }


def _difference_cells(report: "Report", group: int, differences: dict[int, tuple[int, Estimate]]) -> dict[str, str]:
    """Return the cells with early stopping, difference to the baseline, cost and fit; without empty columns."""
    cells = {}
    if f"best/{report.metric}" in report.estimates:
        cells["early stopping"] = _estimate_text(report.estimates[f"best/{report.metric}"][group])
    if report.baseline is not None:
        base, found = differences.get(group, (None, None))
        is_baseline = report.baseline.contains(report.rows[group])
        cells[f"difference to {report.baseline}"] = "baseline" if is_baseline else _estimate_text(found, "+")
        cells["contains 0"] = {None: "-", True: "yes", False: "no"}[found.contains_zero if found else None]
        cells["p"] = format_p_value(found.p_value) if found else "-"
        if "early stopping" in cells:
            early = None if base is None else report.early_difference(group, base)
            cells["difference, early stopping"] = "baseline" if is_baseline else _estimate_text(early, "+")
    for kind in COSTS:
        cost, title = report.costs[kind], COST_COLUMNS[cost_column(report.runs, kind)]
        if any(not pd.isna(value) for value in cost.values()):
            digits = 1 if kind == "seconds" and max(cost.values()) < 100 else 0
            cells[title] = "-" if pd.isna(cost[group]) else f"{cost[group]:,.{digits}f}"
    for title, name in FIT_COLUMNS.items():
        if any(not pd.isna(getattr(fit, name)) for fit in report.fits.values()):
            value = getattr(report.fits[group], name)
            cells[title] = "-" if pd.isna(value) else f"{value:.1%}"
    return cells


def list_numbers(report: "Report", group: int) -> dict[str, Any]:
    """Return all numbers of a group besides the compared metric, by column of report-table.csv."""
    cells: dict[str, Any] = {}
    for tag in (held_out_metric(report.metric), f"best/{report.metric}"):
        if tag != report.metric and tag in report.estimates:
            _, cells[f"{tag} mean"], cells[f"{tag} half_width"] = report.estimates[tag][group]
    if group in report.differences:
        base, found = report.differences[group]
        cells |= {"baseline": report.labels[base], "pairs": found.n, "difference": found.mean}
        cells |= {"difference_half_width": found.half_width, "p_value": found.p_value}
    cells |= {cost_column(report.runs, kind): report.costs[kind][group] for kind in COSTS}
    return cells | dict(zip(FIT_METRICS, astuple(report.fits[group]), strict=True))


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.4f}"


def _estimate_text(found: Estimate | None, sign: str = "") -> str:
    if found is None or found.n == 0:
        return "-"
    return f"{found.mean:{sign}.4f}" + (f" ± {found.half_width:.4f}" if found.n > 1 else "")
