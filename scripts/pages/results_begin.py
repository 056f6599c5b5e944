"""Where SAM begins to help: SAM minus its baseline by epoch, against how far the baseline has memorised wrong labels.

results_page.py writes the answer and the table into docs/results.md, and draws the two figures.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sam_runner.reports.aggregate import Estimate, estimate
from scripts.pages.results_figures import save
from scripts.pages.results_tables import Block, is_above, is_below

STEP = 0.01  # of the memorised fraction from one mark of a curve to the next, at least
COLUMNS = 2  # of frames
MARGIN = 10  # points that a frame shows beyond the means, at most; wider bands are cut
LEGEND_LINE = 0.08  # of a frame's height that a line of its legend needs
GAIN_COLOURS = {"o": "#D55E00", "D": "#0072B2"}  # by mark: at equal epochs, at equal cost
LINE_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


class Point(NamedTuple):
    """A comparison at one epoch.

    Attributes:
        epoch: The epoch.
        gain: Test accuracy of SAM minus that of its baseline at this epoch, paired by seed.
        fitted: Fraction of its training labels that the baseline predicts in this epoch.
        memorised: Fraction of the wrong labels that the baseline predicts in this epoch; NaN without wrong labels.
    """

    epoch: int
    gain: Estimate
    fitted: float
    memorised: float

    @property
    def is_ahead(self) -> bool:
        """Whether the 95% interval of the gain lies above 0."""
        return is_above(self.gain)

    @property
    def is_behind(self) -> bool:
        """Whether the 95% interval of the gain lies below 0."""
        return is_below(self.gain)

    @property
    def progress(self) -> float:
        """How far the baseline is: the fraction memorised, without wrong labels the fraction fitted."""
        return self.fitted if math.isnan(self.memorised) else self.memorised


class Comparison:
    """The final runs of SAM and of its baseline in one block, at the epochs that all of them have evaluated.

    Args:
        block: The block.
        arm: The arm with SAM.

    Attributes:
        points: One for each epoch, in the order of the epochs.
    """

    def __init__(self, block: Block, arm: str) -> None:
        self.block, self.arm, self.baseline = block, arm, block.baseline(arm)
        accuracy = block.by_epoch(arm, "test/accuracy") - block.by_epoch(self.baseline, "test/accuracy")
        gains = accuracy.dropna(axis=1, how="all").dropna()
        self.seeds = list(gains.columns)
        fitted, memorised = (
            block.by_epoch(self.baseline, tag).reindex(index=gains.index, columns=self.seeds).mean(axis=1)
            for tag in ("train/accuracy", "train/memorised")
        )
        self.points = [
            Point(int(epoch), estimate(gain), float(fitted[epoch]), float(memorised[epoch]))
            for epoch, gain in gains.iterrows()
            if len(gain)  # no seed has both runs
        ]

    @property
    def name(self) -> str:
        """Study, block and arm."""
        return f"{self.block.study.content['title']}: {self.block.name}, {self.arm}"

    @property
    def last(self) -> Point:
        """The last epoch."""
        return self.points[-1]

    @property
    def gain_at_cost(self) -> Estimate | None:
        """Test accuracy of SAM minus that of SGD with twice the epochs, in the last epoch; None without such runs."""
        return self.block.gain_at_cost(self.arm)

    @property
    def has_wrong_labels(self) -> bool:
        """Whether a part of the training labels is wrong."""
        return not math.isnan(self.last.memorised)

    @property
    def lead(self) -> Point | None:
        """The first epoch from which on the mean gain stays above 0; None if it is not above 0 in the last epoch."""
        return find_start(self.points, [point.gain.mean > 0 for point in self.points])

    @property
    def start(self) -> Point | None:
        """The first epoch from which on the interval of the gain stays above 0; None if it does not in the last."""
        return find_start(self.points, [point.is_ahead for point in self.points])

    def describe(self, point: Point | None) -> str:
        """Say how far the baseline is at a point, as "9 (28% memorised)"; "-" for None."""
        if point is None:
            return "-"
        word = "memorised" if self.has_wrong_labels else "fitted"
        first = "the first evaluated, " if point.epoch == self.points[0].epoch else ""
        return f"{point.epoch} ({first}{100 * point.progress:.0f}% {word})"


def find_start(points: Sequence[Point], holds: Sequence[bool]) -> Point | None:
    """Return the first point from which on a condition holds at all points; None if it does not hold at the last."""
    failing = [number for number, is_met in enumerate(holds) if not is_met]
    number = failing[-1] + 1 if failing else 0
    return points[number] if number < len(points) else None


def compare(blocks: Sequence[Block]) -> list[Comparison]:
    """Return the comparisons of SAM with its baseline in all blocks; both have as many steps."""
    found = [Comparison(block, arm) for block in blocks for arm in block.sam_arms()]
    return [comparison for comparison in found if comparison.points]


def conclude(comparisons: Sequence[Comparison]) -> str:
    """Answer where SAM begins to help, with the numbers of the comparisons; each line is a paragraph."""
    noisy = [entry for entry in comparisons if entry.has_wrong_labels]
    clean = [entry for entry in comparisons if not entry.has_wrong_labels]
    behind_first = sum(entry.points[0].gain.mean < 0 for entry in comparisons)
    behind_last = sum(entry.last.is_behind for entry in comparisons) or "none"
    text = (
        f"In the first evaluated epoch SAM's mean gain is below 0 in {behind_first} of {len(comparisons)} "
        f"comparisons. In the last epoch the interval of the gain lies below 0 in {behind_last}."
    )
    return "\n".join(filter(None, [conclude_noisy(noisy), conclude_clean(clean), text]))


def count_ahead(comparisons: Sequence[Comparison]) -> str:
    """Say in how many comparisons the interval of the gain lies above 0 in the last epoch."""
    word = "comparison" if len(comparisons) == 1 else "comparisons"
    return f"{sum(entry.last.is_ahead for entry in comparisons)} of {len(comparisons)} {word}"


def say_progress(entry: Comparison) -> str:
    """Say how far the baseline is where the gain begins to stay above 0, as "at most 30%"."""
    bound = "at most " if entry.start is entry.points[0] else ""  # the first evaluated epoch
    return f"{bound}{100 * entry.start.progress:.0f}%"


def conclude_noisy(noisy: Sequence[Comparison]) -> str:
    """Say how far the baselines have memorised wrong labels when SAM begins to help."""
    if not noisy:
        return ""
    found = say_range(noisy)
    if not found:
        return "With wrong labels SAM begins to help in no comparison."
    return (
        f"With wrong labels SAM begins to help in {count_ahead(noisy)}. In epoch E the baseline has memorised {found} "
        "of the wrong labels."
    )


def conclude_clean(clean: Sequence[Comparison]) -> str:
    """Say how far the baselines fit true labels when SAM begins to help."""
    if not clean:
        return ""
    text, found = f"With true labels SAM begins to help in {count_ahead(clean)}.", say_range(clean)
    return f"{text} In epoch E the baseline fits {found} of its training labels." if found else text


def say_range(entries: Sequence[Comparison]) -> str:
    """Say how far the baselines are where the gains begin to stay above 0, as "5% to 30%"; "" if none does."""
    started = sorted((entry for entry in entries if entry.start), key=lambda entry: entry.start.progress)
    ends = (say_progress(entry) for entry in (*started[:1], *started[1:][-1:]))
    return " to ".join(ends)


def draw_begin(comparisons: Sequence[Comparison], folder: Path) -> str | None:
    """Draw the gain against the fraction that the baseline has memorised: a frame for each study, one for true labels.

    The frame for true labels has the fraction of training labels fitted instead, and the rest of the last row.
    """
    if not comparisons:
        return None
    studies: dict[str, list[Comparison]] = {}
    for entry in (entry for entry in comparisons if entry.has_wrong_labels):
        studies.setdefault(entry.block.study.content["title"], []).append(entry)
    clean = [entry for entry in comparisons if not entry.has_wrong_labels]
    rows = math.ceil((len(studies) + bool(clean)) / COLUMNS)
    figure = plt.figure(figsize=(9, 2.6 * rows + 0.4), layout="constrained", dpi=120)
    grid = figure.add_gridspec(rows, COLUMNS)
    for number, (title, entries) in enumerate(studies.items()):
        axes = figure.add_subplot(grid[divmod(number, COLUMNS)])
        plot_frame(axes, title, entries)
        axes.set_xlim(0, 104)
        axes.set_xlabel("wrong labels that the baseline has memorised, %", fontsize=8)
    if clean:
        row, column = divmod(len(studies), COLUMNS)
        axes = figure.add_subplot(grid[row, column:])
        plot_frame(axes, "True labels", clean)
        axes.set_xlabel("training labels that the baseline fits, %", fontsize=8)
    figure.supylabel("test accuracy at the same epoch, SAM minus baseline, points", fontsize=9)
    explain_marks(figure)
    return save(figure, folder, "results_begin")


def explain_marks(figure: Figure) -> None:
    """Add a legend of the marks of `plot_frame`."""
    marks = (("o", "white", "evaluated epoch"), ("o", "#666666", "the interval stays above 0 from here on"),
             ("D", "white", "last epoch"), ("D", "#666666", "last epoch, the interval is above 0"))  # fmt: skip
    handles = [
        Line2D([], [], marker=marker, linestyle="", color="#666666", markerfacecolor=face, markersize=5, label=label)
        for marker, face, label in marks
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=4, frameon=False)


def plot_frame(axes: Axes, title: str, entries: Sequence[Comparison]) -> None:
    """Draw comparisons as lines with bands; marks are filled from where the interval stays above 0."""
    for number, entry in enumerate(entries):
        style = {"color": LINE_COLOURS[number % len(LINE_COLOURS)]}
        points = choose_marks(entry.points)
        x = [100 * point.progress for point in points]
        means = [100 * point.gain.mean for point in points]
        widths = [100 * point.gain.half_width for point in points]
        axes.plot(x, means, linewidth=1.2, **style)
        low, high = ([mean + sign * width for mean, width in zip(means, widths, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, alpha=0.15, linewidth=0, **style)
        start = entry.start.epoch if entry.start else math.inf
        for place, (point, mean) in enumerate(zip(points, means, strict=True)):
            axes.plot(
                x[place], mean, "D" if point is entry.last else "o", markersize=6 if point is entry.last else 4.5,
                mfc=style["color"] if point.epoch >= start else "white", **style,
            )  # fmt: skip
        name = f"{entry.block.name}, {entry.arm}" if entry.has_wrong_labels else entry.name
        label = f"{name} {entry.block.value(entry.arm)}"
        axes.plot([], [], "o-", markersize=4.5, linewidth=1.2, label=label, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    means = [100 * point.gain.mean for entry in entries for point in choose_marks(entry.points)]
    low, high = axes.get_ylim()
    low, high = max(low, min(means) - MARGIN), min(high, max(means) + MARGIN)
    axes.set_ylim(low - LEGEND_LINE * len(entries) * (high - low), high)
    axes.legend(fontsize=7, loc="lower right", frameon=False)


def choose_marks(points: Sequence[Point]) -> list[Point]:
    """Return the points that a curve shows: those that differ from the one before by `STEP` or more, and the last."""
    shown: list[Point] = []
    for point in points:
        if not shown or abs(point.progress - shown[-1].progress) >= STEP or point is points[-1]:
            shown.append(point)
    return shown


def draw_benefit(comparisons: Sequence[Comparison], folder: Path) -> str | None:
    """Draw the last epoch of every comparison: what the baseline fits and memorises, and SAM's gains with intervals.

    Comparisons whose baseline has memorised least come first, those with true labels last, below a line.
    """
    if not comparisons:
        return None
    ordered = sorted(comparisons, key=lambda entry: (not entry.has_wrong_labels, round(entry.last.progress, 2)))
    entries = ordered[::-1]  # from below
    figure, frames = plt.subplots(
        1, 2, figsize=(10, 0.5 * len(entries) + 1.3), layout="constrained", dpi=120, sharey=True, width_ratios=(1, 2.4)
    )
    for row, entry in enumerate(entries):
        plot_end(frames, row, entry)
    frames[0].set_yticks(range(len(entries)), [describe_run(entry) for entry in entries], fontsize=7.5)
    frames[0].set_ylim(-0.6, len(entries) - 0.4)
    frames[0].set_xlim(-4, 104)
    frames[0].set_xlabel("wrong labels memorised (filled),\ntraining labels fitted (open), %", fontsize=8.5)
    frames[0].set_title("baseline", loc="left", fontsize=9.5)
    frames[1].set_xlabel("test accuracy in the last epoch, difference in points", fontsize=8.5)
    frames[1].set_title("SAM's gain", loc="left", fontsize=9.5)
    frames[1].axvline(0, color="black", linewidth=0.8)
    clean = sum(not entry.has_wrong_labels for entry in entries)
    for axes in frames:
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if 0 < clean < len(entries):
            axes.axhline(clean - 0.5, color="black", linewidth=0.8, linestyle=":")
    frames[1].tick_params(axis="y", left=False)
    explain_gains(figure)
    return save(figure, folder, "results_benefit")


def explain_gains(figure: Figure) -> None:
    """Add a legend of the marks of `plot_end`."""
    handles = [
        Line2D([], [], marker=marker, color=GAIN_COLOURS[marker], markersize=6, label=label)
        for marker, label in (("o", "SAM minus its baseline, equal epochs"), ("D", "SAM minus SGD 2x, equal cost"))
    ]
    figure.legend(handles=handles, fontsize=8.5, loc="outside lower right", ncols=2, frameon=False)


def plot_end(frames: Sequence[Axes], row: int, entry: Comparison) -> None:
    """Draw one row of `draw_benefit`."""
    last = entry.last
    frames[0].plot(100 * last.fitted, row + 0.12, "o", color="#666666", mfc="white", markersize=6)
    frames[0].plot(100 * last.memorised, row - 0.12, "o", color="#666666", markersize=6)
    gains = {"o": (last.gain, 0.15)} | ({"D": (entry.gain_at_cost, -0.2)} if entry.gain_at_cost else {})
    for marker, (gain, offset) in gains.items():
        style = {"color": GAIN_COLOURS[marker], "markersize": 6, "capsize": 3}
        width = 100 * gain.half_width if gain.n > 1 else None
        frames[1].errorbar(100 * gain.mean, row + offset, xerr=width, fmt=marker, **style)


def describe_run(entry: Comparison) -> str:
    """Return the name of a comparison, and rho, m, length and network of its runs with SAM."""
    settings, content = entry.block.read_settings(entry.arm, entry.seeds[0]), entry.block.study.content
    network = content.get("networks", {}).get(entry.block.name, content["network"])
    m = settings["optimizer"]["m"] or settings["batch_size"]
    return f"{entry.name}\nrho {settings['rho']:g}, m {m}, {settings['epochs']} epochs, {network}"
