"""Make docs/results/geometry.md and its figures from the CSV file that scripts/studies/geometry_study.py writes.

    python scripts/pages/geometry_page.py            # write the page and the figures
    python scripts/pages/geometry_page.py --check    # exit with 1 if the page is not what the CSV file says

Every number of the page is computed here. The text around them is templates/geometry.md.j2.
"""

import argparse
import re
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

from sam_runner.analysis.correlation import Correlation, conclusion, correlate
from sam_runner.analysis.plots import colour
from sam_runner.analysis.sharpness import GAPS
from sam_runner.reports.aggregate import Estimate, estimate
from scripts.pages.results_figures import save
from scripts.pages.results_tables import format_estimate
from scripts.pages.templates import open_templates
from scripts.studies.geometry_study import RESULTS, Study, read_plan

DOCS = RESULTS.parent.parent
PREFIX = "sharpness/"
WIDTH = 120  # characters of a line of the page
FITTED = 0.99  # training accuracy above which a run counts as fitted
MARKERS = "osD^v"  # of the learning rates


class Results:
    """The rows of the CSV file, and what the page says of them.

    Args:
        table: The CSV file's content.
        content: The plan.
    """

    def __init__(self, table: pd.DataFrame, content: dict[str, Any]) -> None:
        known = ("lambda_max", "ratio", "whole/lambda_max", "whole/ratio", "whole/loss", *GAPS)
        missing = [name for name in known if name not in table]  # not measured yet
        table = table.reindex(columns=[*table, *missing])
        self.content, self.table = content, table
        self.planned = Study(content, Path(), Path(), {}).jobs()
        self.last_epoch = int(table["epoch"].max())
        is_over_time = table["parts"].str.contains("over_time") & table["lambda_max"].notna()
        self.over_time = table[is_over_time]
        self.last = table[table["epoch"] == self.last_epoch]
        is_measured = self.last["parts"].str.contains("sweep") & self.last["loss gap"].notna()
        self.sweep = self.last[is_measured].rename(columns=lambda name: name.removeprefix(PREFIX))
        self.fitted = self.sweep[self.sweep["train/accuracy"] > FITTED]

    @property
    def has_whole(self) -> bool:
        """Whether the eigenvalues on all training images are known for every run over time."""
        rows = self.over_time[self.over_time["epoch"] == self.last_epoch]
        return bool(rows["whole/lambda_max"].notna().all()) and len(rows) == self.count_planned("over_time")

    @property
    def rhos(self) -> list[float]:
        """Radii of the runs over time; 0 is SGD."""
        return sorted(self.over_time["rho"].unique())

    @property
    def epochs(self) -> list[int]:
        """The measured epochs."""
        return sorted(int(epoch) for epoch in self.over_time["epoch"].unique())

    def column(self, rho: float, name: str, epoch: int | None = None) -> pd.Series:
        """Return a column of the runs over time by seed, at an epoch (default: the last one)."""
        rows = self.over_time[self.over_time["epoch"] == (self.last_epoch if epoch is None else epoch)]
        return rows[rows["rho"] == rho].set_index("seed")[name]

    def mean(self, rho: float, name: str, epoch: int | None = None) -> Estimate:
        """Return mean and interval over seeds."""
        return estimate(self.column(rho, name, epoch))

    def difference(self, rho: float, name: str) -> Estimate:
        """Return mean and interval of the paired differences SAM minus SGD at the last epoch."""
        return estimate((self.column(rho, name) - self.column(0, name)).dropna())

    def factor(self, rho: float, name: str, epoch: int | None = None) -> tuple[float, float, float]:
        """Return by which factor SAM's value is below SGD's at an epoch (default: the last one), and its 95% interval.

        It is the geometric mean over seeds of SGD's value divided by SAM's, with Student's t for its logarithm.
        """
        found = estimate(np.log(self.column(0, name, epoch) / self.column(rho, name, epoch)).dropna())
        low, middle, high = np.exp([found.mean - found.half_width, found.mean, found.mean + found.half_width]).tolist()
        return middle, low, high

    def verdict(self, name: str) -> str:
        """Say for which radii SAM's value is smaller or larger than SGD's at the last epoch."""
        found: dict[str, list[str]] = {"smaller": [], "larger": [], "unclear": []}
        for rho in self.rhos[1:]:
            _, low, high = self.factor(rho, name)
            found["smaller" if low > 1 else "larger" if high < 1 else "unclear"].append(f"rho = {rho:g}")
        title = {"ratio": "lambda_max / lambda_5"}.get(name.rpartition("/")[2], "lambda_max")
        parts = [
            f"SAM with {' and '.join(found[size])} has a {size} {title} than SGD."
            for size in ("smaller", "larger")
            if found[size]
        ]
        if found["unclear"]:
            parts.append(f"For {' and '.join(found['unclear'])} no difference of {title} is shown.")
        return " ".join(parts)

    def lower_epochs(self, rho: float, name: str) -> list[int]:
        """Return the epochs at which SAM's value is lower and the interval of the factor excludes 1."""
        return [epoch for epoch in self.epochs if self.factor(rho, name, epoch)[1] > 1]

    @property
    def measures(self) -> list[str]:
        """The measures of sharpness of the sweep."""
        known = {"train_accuracy", "train_nll", "test_accuracy", "test_nll", *GAPS}
        names = [name.removeprefix(PREFIX) for name in self.table if name.startswith(PREFIX)]
        return [name for name in names if name not in known and not name.endswith(" error")]

    def correlations(self, *, only_fitted: bool = False) -> list[Correlation]:
        """Return the rank correlations of every measure with every gap over the sweep, or over its fitted runs."""
        runs = self.fitted if only_fitted else self.sweep
        return correlate(runs, self.measures, list(GAPS), [*zip(runs["rho"], runs["lr"], strict=True)])

    def within(self, measure: str, gap: str, *, only_fitted: bool = False) -> dict[float, float]:
        """Return the rank correlation over the radii of each learning rate, of means over seeds."""
        runs = self.fitted if only_fitted else self.sweep
        means = runs.groupby(["lr", "rho"])[[measure, gap]].mean()
        by_rate = means.groupby(level="lr")
        return {float(lr): round(float(own[measure].corr(own[gap], method="spearman")), 12) for lr, own in by_rate}

    def correlate_radius(self, gap: str) -> float:
        """Return the rank correlation of the negative radius with a gap over the settings."""
        means = self.sweep.groupby(["rho", "lr"])[[gap]].mean().reset_index()
        return float(-means["rho"].corr(means[gap], method="spearman"))

    def conclusions(self) -> list[str]:
        """Return a sentence for each gap."""
        found = self.correlations()
        return [conclusion(found, gap) for gap in GAPS]

    def steady(self, gap: str) -> list[str]:
        """Return the measures whose correlation with a gap is above 0 over all settings and in each learning rate."""
        pooled = {entry.measure: entry.rho for entry in self.correlations() if entry.gap == gap}
        return [name for name in self.measures if pooled[name] > 0 and min(self.within(name, gap).values()) > 0]

    def count_finished(self, part: str) -> int:
        """Return how many planned runs of a part have been measured."""
        rows = self.sweep if part == "sweep" else self.over_time[self.over_time["epoch"] == self.last_epoch]
        return len(rows)

    def count_planned(self, part: str) -> int:
        """Return how many runs of a part are planned."""
        return sum(part in job.parts for job in self.planned)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """One row for each run: its last row in the CSV file."""
        rows: list[dict[str, Any]] = self.table.drop_duplicates("run", keep="last").to_dict("records")
        return rows


def name_method(rho: float) -> str:
    """Return "SGD" or "SAM, rho 0.1"."""
    return f"SAM, rho {rho:g}" if rho else "SGD"


def draw_over_time(results: Results, folder: Path) -> str:
    """Draw lambda_max, the ratio and the test accuracy over training: seeds as thin lines, means with intervals."""
    panels = (
        ("lambda_max", "largest eigenvalue", True),
        ("ratio", "lambda_max / lambda_5", False),
        ("train/loss", "training loss", True),
        ("test/accuracy", "test accuracy", False),
    )
    figure, axes = plt.subplots(2, 2, figsize=(8, 5.4), layout="constrained", dpi=120)
    for frame, (name, label, is_logarithmic) in zip(axes.flat, panels, strict=True):
        for number, rho in enumerate(results.rhos):
            rows = results.over_time[results.over_time["rho"] == rho]
            for _, own in rows.groupby("seed"):
                frame.plot(own["epoch"], own[name], color=colour(number), linewidth=0.6, alpha=0.45)
            means = [results.mean(rho, name, epoch) for epoch in results.epochs]
            frame.plot(
                results.epochs, [found.mean for found in means], "o-", color=colour(number), markersize=4,
                linewidth=1.5, label=name_method(rho),
            )  # fmt: skip
        frame.set(xlabel="epoch", ylabel=label)
        if is_logarithmic:
            frame.set_yscale("log")
            frame.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            frame.yaxis.set_major_formatter("{x:g}")
            frame.minorticks_off()
        frame.grid(alpha=0.3)
        frame.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return save(figure, folder, "geometry_over_time")


def draw_sweep(results: Results, folder: Path) -> str | None:
    """Draw each measure of sharpness against the loss gap: colour by rho, marker by learning rate."""
    if not len(results.sweep):
        return None
    names = results.measures
    rows = -(-len(names) // 3)
    figure, axes = plt.subplots(
        rows, 3, figsize=(8.4, 2.6 * rows + 0.5), layout="constrained", dpi=120, squeeze=False, sharey=True
    )
    rhos, rates = (sorted(results.sweep[name].unique()) for name in ("rho", "lr"))
    for frame in list(axes.flat)[len(names) :]:
        frame.set_visible(False)
    for frame, name in zip(axes.flat, names, strict=False):
        for (rho, lr), own in results.sweep.groupby(["rho", "lr"]):
            frame.plot(
                own[name], own["loss gap"], MARKERS[rates.index(lr)], color=colour(rhos.index(rho)), markersize=5,
                alpha=0.85, label=f"{name_method(rho)}, lr {lr:g}", linestyle="none",
            )  # fmt: skip
        frame.set_xlabel(name, fontsize=8.5)
        frame.grid(alpha=0.3)
        frame.spines[["top", "right"]].set_visible(False)
    for frame in axes[:, 0]:
        frame.set_ylabel("loss gap (test - training)", fontsize=8.5)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(rhos), frameon=False, fontsize=7.5)
    return save(figure, folder, "geometry_sweep")


def render(results: Results, figures: dict[str, str | None]) -> str:
    """Return the page."""
    environment = open_templates(
        percent=format_estimate,
        number=lambda found, digits=2: format_estimate(found, 1, digits),
        signed=lambda found, digits=2: format_estimate(found, 1, digits, signed=True),
        signed_percent=lambda found: format_estimate(found, signed=True),
    )
    text = environment.get_template("geometry.md.j2").render(
        results=results, plan=results.content, figures=figures, name=name_method, gaps=GAPS,
        correlations={(entry.measure, entry.gap): entry for entry in results.correlations()},
        threshold=FITTED,
        fitted={(entry.measure, entry.gap): entry for entry in results.correlations(only_fitted=True)},
    )  # fmt: skip
    return "".join(map(wrap, re.split(r"(^```.*?^```\n)", text, flags=re.M | re.S)))


def wrap(text: str) -> str:
    """Return text with its long lines wrapped, but for code blocks, tables, headings and pictures."""
    if text.startswith("```"):
        return text
    return "".join(
        line if line.startswith(("|", "#", "!")) or len(line) <= WIDTH
        else textwrap.fill(line, WIDTH, subsequent_indent="  " * line.startswith("- "), break_on_hyphens=False) + "\n"
        for line in text.splitlines(keepends=True)
    )  # fmt: skip


def make_page(docs: Path, table: Path = RESULTS, *, smoke: bool = False) -> Path:
    """Write the page and its figures into a folder; returns the page."""
    results = Results(pd.read_csv(table), read_plan(smoke=smoke))
    figures = {"over_time": draw_over_time(results, docs / "img"), "sweep": draw_sweep(results, docs / "img")}
    page = docs / "results" / "geometry.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(results, figures), encoding="utf-8")
    return page


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/ instead of writing")
    if not parser.parse_args().check:
        print(make_page(DOCS))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        is_same = make_page(Path(folder)).read_text() == (DOCS / "results" / "geometry.md").read_text()
    print("the page is what the CSV file says" if is_same else "the page is not what the CSV file says: write it again")
    return int(not is_same)


if __name__ == "__main__":
    sys.exit(main())
