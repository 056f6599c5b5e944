"""The figures of docs/results.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from scripts.pages.results_tables import Block
from scripts.studies.evidence import Study

plt.switch_backend("Agg")
COLOURS = {"sgd": "#000000", "sgd-2x": "#666666", "sam": "#D55E00", "sam-m32": "#E69F00"}
OTHER_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#882255", "#999933", "#332288", "#56B4E9", "#117733")
MARKERS = "os^DvP*X<>"  # of the blocks
LEAST_SPAN = 20.0  # points of accuracy that a frame of the searches shows, at least
RADII = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # that the axis of rho names


def colour(study: Study, arm: str) -> str:
    """Return the colour of an arm, the same on all figures of a study."""
    others = [name for name in study.content["arms"] if name not in COLOURS]
    return COLOURS.get(arm) or OTHER_COLOURS[others.index(arm) % len(OTHER_COLOURS)]


def plot_block(axes: Axes, block: Block) -> None:
    """Draw the test accuracy of every arm: a small mark per seed, mean and 95% interval as a large one."""
    arms = block.arms[::-1]
    for row, arm in enumerate(arms):
        for offset, (kind, marker) in zip((0.14, -0.14), (("final", "o"), ("best", "D")), strict=True):
            values, found = block.column(arm, f"{kind}/test/accuracy"), block.estimate(arm, f"{kind}/test/accuracy")
            style = {"color": colour(block.study, arm)}
            axes.plot(100 * values, [row + offset] * len(values), ".", alpha=0.4, markersize=5, **style)
            axes.errorbar(
                100 * found.mean, row + offset, xerr=100 * found.half_width if found.n > 1 else None, fmt=marker,
                mfc="white" if kind == "best" else style["color"], markersize=7, capsize=3, **style,
            )  # fmt: skip
    axes.set_yticks(range(len(arms)), [" ".join(filter(None, [arm, block.value(arm)])) for arm in arms])
    axes.set_ylim(-0.6, len(arms) - 0.4)
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, 0), min(right, 100))
    axes.set_title(block.title, loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_study(study: Study, blocks: list[Block], folder: Path) -> str | None:
    """Draw one frame for each block into a file; returns its name, None without final runs."""
    blocks = [block for block in blocks if block.arms]
    if not blocks:
        return None
    heights = [0.55 * len(block.arms) + 0.6 for block in blocks]
    figure, frames = plt.subplots(
        len(blocks),
        figsize=(7, sum(heights) + 0.6),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
        dpi=120,
    )
    for axes, block in zip(frames[:, 0], blocks, strict=True):
        plot_block(axes, block)
    figure.supxlabel("test accuracy in % (filled: last epoch; open: early stopping on held-out labels)", fontsize=10)
    return save(figure, folder, f"results_{study.name}")


def draw_curves(blocks: list[Block], folder: Path) -> str | None:
    """Draw the test accuracy by epoch in every block: the mean of the seeds, and a band from the lowest to the highest.

    Arms with other numbers of epochs than the baseline are left out.
    """
    blocks = [block for block in blocks if "sgd" in block.arms and "sam" in block.arms]
    if not blocks:
        return None
    figure, frames = plt.subplots(1, len(blocks), figsize=(9, 3.4), squeeze=False, layout="constrained", dpi=120)
    for axes, block in zip(frames[0], blocks, strict=True):
        for arm in [name for name in block.arms if name != "sgd-2x"]:
            curves = block.by_epoch(arm, "test/accuracy")
            style = {"color": colour(block.study, arm)}
            axes.plot(100 * curves.mean(axis=1), label=arm, **style)
            axes.fill_between(curves.index, 100 * curves.min(axis=1), 100 * curves.max(axis=1), alpha=0.15, **style)
        axes.set_title(block.title, loc="left", fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    frames[0][0].set_ylabel("test accuracy, %")
    figure.legend(
        *frames[0][0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4, frameon=False
    )
    return save(figure, folder, f"results_{blocks[0].study.name}_curves")


def draw_radius(blocks: list[Block], folder: Path) -> str | None:
    """Draw what the searches of SAM's radius found, a row for each study."""
    studies: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for block in blocks:
        for arm in [name for name in block.study.content["arms"] if name.partition("-")[0] == "sam"]:
            found = block.searches[(block.searches["arm"] == arm) & block.searches["value"].str.startswith("rho=")]
            if len(found) > 1:
                studies.setdefault(block.study.content["title"], []).append((f"{block.name}, {arm}", found))
    if not studies:
        return None
    figure, frames = plt.subplots(
        len(studies),
        2,
        figsize=(9, 1.9 * len(studies) + 0.4),
        squeeze=False,
        layout="constrained",
        dpi=120,
        sharex=True,
    )
    for row, (title, searches) in zip(frames, studies.items(), strict=True):
        plot_searches(row, searches)
        row[0].set_title(f"{title}\naccuracy on held-out images, %", fontsize=9, loc="left")
        row[1].set_title("wrong labels memorised, %", fontsize=9, loc="left")
    for axes in frames[-1]:
        axes.set_xlabel("rho", fontsize=9)
    return save(figure, folder, "results_radius")


def plot_searches(frames: Sequence[Axes], searches: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """Draw the searches of a study, each with its name: the accuracy on held-out images, then what they memorised."""
    for number, (name, found) in enumerate(searches):
        radii = found["value"].str.removeprefix("rho=").astype(float)
        style = {"marker": MARKERS[number], "color": f"C{number}", "linewidth": 1, "markersize": 5}
        frames[0].plot(radii, 100 * found["final/validation/accuracy"], **style)
        frames[1].plot(radii, 100 * found["final/train/memorised"], label=name, **style)
    low, high = frames[0].get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, LEAST_SPAN / 2)
    frames[0].set_ylim(middle - half, middle + half)
    frames[1].set_ylim(-5, 105)
    if all(found["final/train/memorised"].isna().all() for _, found in searches):
        frames[1].text(0.5, 0.5, "no wrong labels", fontsize=8, transform=frames[1].transAxes, ha="center")
    frames[1].legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axes in frames:
        axes.set_xscale("log")
        axes.set_xticks(RADII, [f"{radius:g}" for radius in RADII])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, folder: Path, name: str) -> str:
    """Write a figure as PNG without the date, so that the same numbers give the same bytes; returns the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close(figure)
    return f"{name}.png"
