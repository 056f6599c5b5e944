"""Draw the plots of a report: the metric against a searched setting, differences to the baseline, curves by epoch.

Each group of runs, an arm of the comparison, has one colour, marker and line style on all plots.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sam_runner.reports.aggregate import ranking_sign
from sam_runner.reports.report import Report
from sam_runner.reports.results import read_curve
from sam_runner.reports.tables import column_title, settings_label

plt.switch_backend("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")  # Okabe and Ito, and grey
MARKERS = ("o", "s", "^", "D", "v")
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
INK = "#1b1f24"  # of axes and text; the page replaces it by the colour of its text
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6,
    "grid.color": INK, "text.parse_math": False, "svg.fonttype": "none", "pdf.fonttype": 42, "lines.linewidth": 1.5,
    "lines.markersize": 5,
}  # fmt: skip
MAX_CURVES = 8
MAX_BARS = 30
MAX_MARKED_POINTS = 30  # a line of more points has no markers
SHARPNESS = "train/loss_gap"


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: Part of the file names.
        title: Heading.
        caption: What points, lines and bands are.
        files: Contents of the files by suffix: png, svg, pdf.
    """

    name: str
    title: str
    caption: str
    files: Mapping[str, bytes]


class ArmStyle(NamedTuple):
    """How a group of runs is drawn on every plot."""

    colour: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


def arm_styles(groups: Sequence[int]) -> dict[int, ArmStyle]:
    """Return a style for each group; 35 groups have different ones."""
    styles = {}
    for number, group in enumerate(groups):
        turn = number // len(COLOURS) % len(MARKERS)
        styles[group] = ArmStyle(COLOURS[number % len(COLOURS)], MARKERS[(number + turn) % len(MARKERS)], DASHES[turn])
    return styles


def draw_plots(report: Report) -> list[Plot]:
    """Draw the plots for which the runs have numbers."""
    plots = []
    groups = report.groups[report.groups["n"] > 0]
    n = _count_seeds(groups["n"])
    with plt.rc_context(STYLE):
        for name in plotted_settings(report):
            caption = f"Points: mean over seeds; bars: 95% interval (Student's t), {n}."
            if not (groups[name] > 0).all():
                caption += f" Horizontal lines: runs without {name}, with their interval as a band."
            title = f"{report.metric} against {column_title(name)}"
            plots.append(_draw(name, title, caption, partial(plot_against, report=report, name=name)))
        bars = [group for group, (_, difference) in report.differences.items() if difference.n > 0][:MAX_BARS]
        if len(bars) > 0 and report.baseline is not None:
            pairs = _count_seeds(pd.Series([report.differences[group][1].n for group in bars]))
            caption = f"Points: mean difference of pairs with the same seed; bars: 95% interval, {pairs} pairs."
            caption += " An interval that does not cross 0 is significant at the 5% level."
            if any(report.differences[group][1].is_constant for group in bars):
                caption += " A point without a width is not: too few distinct values for a test."
            title = f"{report.metric}: difference to {report.baseline}"
            plots.append(_draw("differences", title, caption, partial(_plot_differences, report=report, groups=bars)))
        sign = ranking_sign(report.metric)
        order = (sign * groups["mean"]).sort_values(ascending=False, kind="stable").index
        for name, tag, title in (
            ("curves", report.metric, f"{report.metric} by epoch"),
            ("gap", SHARPNESS, "Sharpness by epoch: loss at w + eps minus loss at w"),
        ):
            curves = _read_curves(report, [int(group) for group in order], tag)
            if not curves:
                continue
            seeds = pd.Series([curve.shape[1] for curve in curves.values()])
            caption = f"Lines: mean over seeds; bands: from the lowest to the highest seed, {_count_seeds(seeds)}."
            if len(curves) == MAX_CURVES < len(order):
                best = f"best of {len(order)} by {report.metric}" if sign else f"first of {len(order)} in the table"
                caption += f" The {MAX_CURVES} {best}."
            if tag == SHARPNESS and len({report.rows[group].get("rho") for group in curves}) > 1:
                caption += " A larger rho makes a longer eps: compare lines of the same rho."
            label = tag if tag != SHARPNESS else "loss at w + eps minus loss at w"
            plots.append(_draw(name, title, caption, partial(_plot_curves, report=report, curves=curves, label=label)))
    return plots


def _count_seeds(n: pd.Series) -> str:
    low, high = int(n.min()), int(n.max())
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def plotted_settings(report: Report) -> list[str]:
    """Return the searched settings, or rho, that have at least two positive values to plot the metric against."""
    groups = report.groups[report.groups["n"] > 0]
    names = dict.fromkeys([*report.search_settings[0], *(["rho"] if "rho" in groups else [])])
    numeric = [name for name in names if pd.api.types.is_numeric_dtype(groups[name])]
    return [name for name in numeric if groups.loc[groups[name] > 0, name].nunique() > 1]


def _draw(name: str, title: str, caption: str, plot: Callable[[Axes], None]) -> Plot:
    figure, axes = plt.subplots(figsize=(6, 3.7), dpi=150, layout="constrained")
    plot(axes)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is computed once, not once for each file
    files = {}
    for kind, metadata in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        stream = io.BytesIO()
        with plt.rc_context({"svg.hashsalt": name}):  # the same bytes for the same numbers
            figure.savefig(stream, format=kind, metadata=metadata, transparent=kind == "svg")
        files[kind] = stream.getvalue()
    plt.close(figure)
    return Plot(name.replace("/", "-"), title, caption, files)


def plot_against(axes: Axes, report: Report, name: str) -> None:
    """Plot the metric against a setting: a point for each group, and a line for groups that differ in it only.

    Groups without a positive value of the setting, such as SGD for rho, are horizontal lines.
    """
    styles = arm_styles(list(report.rows))
    others = [setting for setting in report.settings if setting != name]
    rows = {group: row for group, row in report.rows.items() if row["n"] > 0}
    with_value = sorted((group for group, row in rows.items() if row[name] > 0), key=lambda group: rows[group][name])
    lines: dict[str, list[int]] = {}
    for group in with_value:
        lines.setdefault(settings_label({key: rows[group][key] for key in others}), []).append(group)
    random_search = len(lines) > 2 * MAX_CURVES  # hardly two runs share the other settings: draw points only
    for number, (label, line) in enumerate(lines.items()):
        values, means = [rows[group][name] for group in line], [rows[group]["mean"] for group in line]
        if not random_search:
            dashes = DASHES[number % len(DASHES)]
            axes.plot(values, means, color=INK, alpha=0.45, linewidth=1, linestyle=dashes, label=label or "runs")
        for group in line:
            value, n, mean, half_width = (rows[group][key] for key in (name, "n", "mean", "half_width"))
            colour, marker, _ = styles[group]
            axes.errorbar(value, mean, half_width if n > 1 else None, color=colour, marker=marker, capsize=3, ls="")
    for group in rows.keys() - {*with_value} if not random_search else ():
        mean, half_width = rows[group]["mean"], rows[group]["half_width"]
        axes.axhline(mean, color=styles[group].colour, linestyle=styles[group].dashes, label=report.labels[group])
        if half_width > 0:
            axes.axhspan(mean - half_width, mean + half_width, color=styles[group].colour, alpha=0.14, linewidth=0)
    _set_ticks(axes, sorted({rows[group][name] for group in with_value}))
    axes.set(xlabel=column_title(name), ylabel=report.metric)
    _add_legend(axes)


def _set_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Label each value where there are few of them, otherwise round numbers, without overlapping labels."""
    if values[-1] / values[0] >= 8:
        axes.set_xscale("log")
    digits = (1, 2, 5) if values[-1] < 300 * values[0] else (1,)
    round_numbers = [digit * 10.0**power for power in range(-9, 4) for digit in digits]
    ticks = values if len(values) <= 8 else [tick for tick in round_numbers if values[0] <= tick <= values[-1]]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()


def _plot_differences(axes: Axes, report: Report, groups: Sequence[int]) -> None:
    """Plot the difference of each group to the baseline with its interval, one below the other."""
    styles = arm_styles(list(report.rows))
    plt.gcf().set_figheight(1.2 + 0.3 * len(groups))
    for position, group in enumerate(groups):
        _, difference = report.differences[group]
        style = styles[group]
        axes.errorbar(
            difference.mean, position, xerr=difference.half_width if difference.n > 1 else None, color=style.colour,
            marker=style.marker, capsize=3,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(groups)), [report.labels[group] for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=f"{report.metric} minus that of {report.baseline}")


def _read_curves(report: Report, groups: Sequence[int], tag: str) -> dict[int, pd.DataFrame]:
    """Return a metric by epoch for the first groups that have it, with one column a seed."""
    curves: dict[int, pd.DataFrame] = {}
    for group in groups:
        folders = report.runs.loc[report.runs["group"] == group, "folder"]
        found = [curve for folder in folders if len(curve := read_curve(folder, tag))]
        common = pd.concat(found, axis=1, join="inner").sort_index() if found else pd.DataFrame()
        if len(common):
            curves[group] = common
        if len(curves) == MAX_CURVES:
            break
    return curves


def _plot_curves(axes: Axes, report: Report, curves: Mapping[int, pd.DataFrame], label: str) -> None:
    """Plot the mean over seeds by epoch, with a band from the lowest to the highest seed."""
    styles = arm_styles(list(report.rows))
    for group in sorted(curves):
        curve: pd.DataFrame = curves[group]
        style = styles[group]
        marker = style.marker if len(curve) <= MAX_MARKED_POINTS else ""
        axes.plot(
            curve.index, curve.mean(axis=1), color=style.colour, linestyle=style.dashes, marker=marker, markersize=3.5,
            label=report.labels[group],
        )  # fmt: skip
        if curve.shape[1] > 1:
            axes.fill_between(curve.index, curve.min(axis=1), curve.max(axis=1), color=style.colour, alpha=0.14, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=label)
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """Add a legend below the axes, where it hides no line."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    num_columns = max(1, min(4, 100 // (max(map(len, labels)) + 8)))
    figure = plt.gcf()
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(labels) // num_columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=num_columns, frameon=False)
