"""Plots of curvature, sharpness and slices, as PNG and SVG."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sam_runner.utils.files import write_bytes

plt.switch_backend("Agg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sam-runner",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}


def save_figure(path: Path, size: tuple[float, float], columns: int, draw: Callable[..., object]) -> list[Path]:
    """Draw a figure and write it as PNG and SVG.

    Args:
        path: Path without suffix.
        size: Width and height in inches.
        columns: Number of axes, side by side.
        draw: Called with the figure and its axes.

    Returns:
        The paths of the two files.
    """
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=size, dpi=140, layout="constrained", squeeze=False)
        draw(figure, *axes[0])
        files = []
        for suffix in (".png", ".svg"):
            stream = io.BytesIO()
            figure.savefig(stream, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
            file = path.with_name(path.name + suffix)
            write_bytes(file, stream.getvalue())
            files.append(file)
        plt.close(figure)
    return files


def colour(number: int) -> str:
    """Return the colour of a curve."""
    return COLOURS[number % len(COLOURS)]


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add a legend below the axes, where it hides no curve, unless there is nothing to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    columns = max(1, min(4, 112 // (max(map(len, labels)) + 8)))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)


def draw_densities(axes: Axes, densities: Sequence[tuple[str, Any, Any]]) -> None:
    """Draw smoothed densities, (label, eigenvalues, density) each, on a logarithmic axis over seven decades."""
    highest = max(float(np.max(curve)) for _, _, curve in densities)
    for number, (label, grid, curve) in enumerate(densities):
        floor = highest * 1e-7
        axes.plot(grid, np.maximum(curve, floor), color=colour(number), label=label, linewidth=1.1)
        axes.fill_between(grid, floor, np.maximum(curve, floor), color=colour(number), alpha=0.08, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(highest * 1e-7, highest * 3)
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", title="Spectral density")
    axes.grid(alpha=0.25, linewidth=0.5)


def draw_lambda_max(axes: Axes, curves: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> None:
    """Draw the largest eigenvalue against the training step, (label, steps, values) each."""
    over_time = any(len(steps) > 1 for _, steps, _ in curves)
    for number, (label, steps, values) in enumerate(curves):
        if over_time:
            axes.plot(steps, values, "o-", color=colour(number), label=label, markersize=3.5, linewidth=1.2)
        else:
            axes.plot([values[-1]], [number], "o", color=colour(number), label=label, markersize=6)
    if over_time:
        axes.set(xlabel="training step", ylabel="largest eigenvalue", title="Largest eigenvalue")
        axes.set_ylim(bottom=0)
    else:
        axes.set_yticks(range(len(curves)), [label for label, _, _ in curves])
        axes.set(xlabel="largest eigenvalue", title="Largest eigenvalue", ylim=(len(curves) - 0.5, -0.5))
        largest = max(max(values) for _, _, values in curves)
        axes.set_xlim(0, 1.1 * largest if largest > 0 else 1)
    axes.grid(alpha=0.25, linewidth=0.5)


def draw_against_gap(axes: Axes, values: Sequence[float], gaps: Sequence[float], measure: str, gap: str) -> None:
    """Draw one point for each run: a measure of sharpness against a generalisation gap."""
    axes.plot(values, gaps, "o", color=colour(0), markersize=4.5, alpha=0.8)
    axes.set(xlabel=measure, ylabel=gap)
    axes.locator_params(nbins=5)
    axes.grid(alpha=0.25, linewidth=0.5)


def draw_m_sharpness(axes: Axes, curves: Sequence[tuple[str, Sequence[int], Sequence[float], Sequence[float]]]) -> None:
    """Draw m-sharpness against m, (label, values of m, values, standard errors) each."""
    for number, (label, sizes, values, errors) in enumerate(curves):
        axes.errorbar(
            sizes, values, errors, color=colour(number), label=label, marker="o", markersize=3.5, capsize=2,
            linewidth=1.2,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    sizes = sorted({size for _, own, _, _ in curves for size in own})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="m", ylabel="m-sharpness")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.5)


def draw_line(axes: Axes, table: Any, marks: Sequence[tuple[str, float, float]], kind: str) -> None:
    """Draw training and test loss along a line or a path, and the accuracies on a second axis."""
    right = axes.twinx()
    for number, name in enumerate(("train", "test")):
        label = {"train": "training", "test": "test"}[name]
        axes.plot(table["a"], table[f"{name}_loss"], color=colour(number), label=f"{label} loss", linewidth=1.5)
        right.plot(
            table["a"], table[f"{name}_accuracy"], "--", color=colour(number), label=f"{label} accuracy", linewidth=1.1
        )
    low = float(table[["train_loss", "test_loss"]].min().min())
    high = float(table[["train_loss", "test_loss"]].max().max())
    if low > 0 and high / low > 30:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    right.set_ylim(0, 1.02)
    right.spines["right"].set_visible(True)
    for label, a, _ in marks:
        axes.axvline(a, color="0.35", linewidth=0.8, linestyle=":")
        if kind == "path":
            axes.annotate(label, (a, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    names = {"line": "step along a filter-normalised random direction", "path": "position between the checkpoints"}
    axes.set(xlabel=names[kind], ylabel="loss")
    right.set_ylabel("accuracy (dashed)")
    axes.grid(alpha=0.25, linewidth=0.5)


def draw_surface(
    figure: Figure, axes: Axes, table: Any, marks: Sequence[tuple[str, float, float]], column: str, title: str
) -> None:
    """Draw the contours of a loss over a plane, with the checkpoints, on a logarithmic scale of colours."""
    grid = table.pivot(index="b", columns="a", values=column)
    values = np.nan_to_num(grid.to_numpy(), nan=np.inf)
    finite = values[np.isfinite(values)]
    if not finite.size:
        axes.set(xlabel="a", ylabel="b", title=f"{title}: not finite at any point")
        return
    low, high = max(float(finite.min()), 1e-8), float(finite.max())
    levels = np.geomspace(low, max(high, low * 1.01), 16)
    clipped = np.clip(values, low, levels[-1])
    norm = mpl.colors.LogNorm(low, levels[-1])
    filled = axes.contourf(grid.columns, grid.index, clipped, levels, norm=norm, cmap="viridis")
    axes.contour(grid.columns, grid.index, clipped, levels, norm=norm, colors="white", linewidths=0.35, alpha=0.6)
    bar = figure.colorbar(filled, ax=axes, shrink=0.9, format="%.3g")
    bar.set_ticks(list(levels[::3]))
    bar.ax.minorticks_off()
    for label, a, b in marks:
        axes.plot([a], [b], "o", color="#D55E00", markeredgecolor="white", markersize=6)
        axes.annotate(
            label, (a, b), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8, color="white",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "#141a22", "alpha": 0.75, "linewidth": 0},
        )  # fmt: skip
    axes.set(xlabel="a", ylabel="b", title=title)
