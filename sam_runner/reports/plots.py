"""Draw the plots of a report: the metric against rho, the metric by epoch, and the sharpness by epoch."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sam_runner.reports.report import Report, ranking_sign
from sam_runner.reports.results import read_curve
from sam_runner.reports.tables import settings_label

plt.switch_backend("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MAX_CURVES = 8
SHARPNESS = "train/loss_gap"


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: Part of the file name.
        title: Heading.
        png: Contents of a PNG file.
    """

    name: str
    title: str
    png: bytes


def draw_plots(report: Report) -> list[Plot]:
    """Draw the metric against rho where rho varies, the metric by epoch, and the sharpness where runs have it."""
    plots = []
    groups = report.groups[report.groups["n"] > 0]
    if "rho" in groups and groups.loc[groups["rho"] > 0, "rho"].nunique() > 1:
        plots.append(Plot("rho", f"{report.metric} against rho", _draw(lambda axes: plot_against_rho(axes, report))))
    order = (ranking_sign(report.metric) * groups["mean"]).sort_values(ascending=False, kind="stable").index
    chosen = list(order[:MAX_CURVES])
    plots.append(Plot("curves", f"{report.metric} by epoch", _draw(lambda axes: _plot_curves(axes, report, chosen))))
    folders = report.runs.drop_duplicates("group")["folder"]
    if any(len(read_curve(folder, SHARPNESS)) for folder in folders):
        png = _draw(lambda axes: _plot_curves(axes, report, chosen, SHARPNESS))
        plots.append(Plot("gap", "Sharpness: loss at w + eps minus loss at w", png))
    return plots


def _draw(plot: Callable[[Axes], None]) -> bytes:
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    plot(axes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    plt.close(figure)
    return stream.getvalue()


def plot_against_rho(axes: Axes, report: Report) -> None:
    """Plot one line for each combination of the other settings; runs without rho are a dashed level."""
    groups = report.groups[report.groups["n"] > 0]
    others = [name for name in report.settings if name not in ("optimizer", "rho")]
    labels = pd.Series([settings_label(row) for row in groups[others].to_dict("records")], groups.index, dtype=str)
    random_search = labels.nunique() > 2 * MAX_CURVES  # hardly two runs share the other settings: draw points only
    if random_search:
        labels[:] = ""
    for number, (label, line) in enumerate(groups.groupby(labels, sort=False)):
        colour, suffix = COLOURS[number % len(COLOURS)], f", {label}" if label else ""
        points = line[line["rho"] > 0].sort_values("rho")
        if len(points):
            axes.errorbar(
                points["rho"], points["mean"], points["half_width"].fillna(0), color=colour, capsize=3,
                marker="os^D"[number // len(COLOURS) % 4], linestyle="" if random_search else "-", label=f"SAM{suffix}",
            )  # fmt: skip
        for mean, half_width in line.loc[~(line["rho"] > 0), ["mean", "half_width"]].to_numpy():
            axes.axhline(mean, color=colour, linestyle="--", label=f"SGD{suffix}")
            if half_width > 0:
                axes.axhspan(mean - half_width, mean + half_width, color=colour, alpha=0.12, linewidth=0)
    _set_rho_ticks(axes, sorted(groups.loc[groups["rho"] > 0, "rho"].unique()))
    if "accuracy" in report.metric:
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))  # the interval of an accuracy may extend beyond 1
    axes.set(xlabel="rho", ylabel=report.metric)
    _add_legend(axes)


def _set_rho_ticks(axes: Axes, radii: Sequence[float]) -> None:
    """Label each radius where there are few of them, otherwise round numbers, without overlapping labels."""
    if radii[-1] / radii[0] >= 8:
        axes.set_xscale("log")
    digits = (1, 2, 5) if radii[-1] < 300 * radii[0] else (1,)
    round_numbers = [digit * 10.0**power for power in range(-9, 4) for digit in digits]
    ticks = radii if len(radii) <= 8 else [tick for tick in round_numbers if radii[0] <= tick <= radii[-1]]
    axes.set_xticks(ticks, [f"{radius:g}" for radius in ticks])
    axes.minorticks_off()


def _plot_curves(axes: Axes, report: Report, groups: Sequence[int], tag: str = "") -> None:
    """Plot the mean over seeds of a metric by epoch, with a band from the lowest to the highest seed."""
    tag = tag or report.metric
    for number, group in enumerate(groups):
        folders = report.runs.loc[report.runs["group"] == group, "folder"]
        curves = pd.concat([read_curve(folder, tag) for folder in folders], axis=1, join="inner").sort_index()
        if curves.empty:
            continue
        colour, style = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        label = settings_label(report.groups.loc[group, report.settings].to_dict()) or "all runs"
        axes.plot(curves.index, curves.mean(axis=1), style, color=colour, label=label, linewidth=1.6)
        axes.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=colour, alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=tag)
    if axes.lines:
        _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """Add a legend below the axes, where it hides no line."""
    handles, labels = axes.get_legend_handles_labels()
    num_columns = max(1, min(4, 112 // (max(map(len, labels)) + 8)))
    figure = plt.gcf()
    figure.set_figheight(figure.get_figheight() + 0.16 * -(-len(labels) // num_columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=num_columns, frameon=False, fontsize=8)
