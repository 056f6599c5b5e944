"""Make the section "Comparison" of docs/family.md and its figure from the CSV files of the two studies of the family.

    python scripts/pages/family_section.py            # write the section and the figure
    python scripts/pages/family_section.py --check    # exit with 1 if the section is not what the CSV files say

Every number and every list of methods is computed here. The text around them is templates/family.md.j2.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sam_runner.reports.aggregate import Estimate
from scripts.pages.geometry_page import wrap
from scripts.pages.results_figures import save
from scripts.pages.results_page import DOCS
from scripts.pages.results_tables import format_estimate, read_blocks
from scripts.pages.templates import open_templates
from scripts.studies.evidence import RESULTS, Study

PAGE = DOCS / "family.md"
SECTION = re.compile(r"^## Comparison\n.*?(?=^## )", re.M | re.S)
BASELINES = ("sgd", "sgd-2x")
ACCURACY, RIGHT = "final/test/accuracy", "final/train/accuracy_clean"
WIDEST = 15.0  # points on either side of 0 in the figure; longer intervals are cut


class Side:
    """One study of the family: its final runs, and which methods differ from a baseline.

    Args:
        name: Name of the study; it has one block.
        results: Folder of its CSV file.
    """

    def __init__(self, name: str, results: Path = RESULTS) -> None:
        self.study = Study(name, results=results)
        (self.block,) = read_blocks(self.study)
        self.methods = [arm for arm in self.study.content["arms"] if arm not in BASELINES and arm in self.block.arms]
        self.methods.sort(key=self.block.cost)  # stable: equal costs stay in the plan's order
        self.differences: dict[tuple[str, str, str], Estimate] = {}

    def difference(self, arm: str, other: str, kind: str = "final") -> Estimate:
        """Return a method's test accuracy minus another arm's; kind "best" is early stopping."""
        key = (arm, other, kind)
        if key not in self.differences:  # each takes milliseconds, and the section asks many times
            self.differences[key] = self.block.difference(arm, other, f"{kind}/test/accuracy")
        return self.differences[key]

    def above(self, other: str, kind: str = "final") -> list[str]:
        """Return the methods whose interval of the difference to another arm is above 0."""
        found = {arm: self.difference(arm, other, kind) for arm in self.methods if arm != other}
        return [arm for arm, each in found.items() if each.contains_zero is False and each.mean > 0]

    def below(self, other: str) -> list[str]:
        """Return the methods whose interval of the difference to another arm is below 0."""
        found = {arm: self.difference(arm, other) for arm in self.methods if arm != other}
        return [arm for arm, each in found.items() if each.contains_zero is False and each.mean < 0]

    def worth(self) -> list[str]:
        """Return the methods that are above SGD at equal epochs and above SGD with twice the epochs."""
        return [arm for arm in self.above("sgd") if arm in self.above("sgd-2x")]

    def bargains(self) -> list[str]:
        """Return the methods that are worth their price, cost less than SAM, and are not below SAM."""
        return [arm for arm in self.worth() if self.is_cheap(arm) and arm not in self.below("sam")]

    def free(self) -> list[str]:
        """Return the methods that cost as much as SGD."""
        return [arm for arm in self.methods if self.block.cost(arm) <= 1]

    def is_cheap(self, arm: str) -> bool:
        """Return whether a method evaluates at most nine tenths of SAM's gradients."""
        return self.block.cost(arm) <= 0.9 * self.block.cost("sam")

    def mean(self, arm: str, metric: str) -> float:
        """Return the mean of a metric over seeds, a fraction."""
        return self.block.estimate(arm, metric).mean

    def list_unfitted(self, least: float) -> list[str]:
        """Return the methods that fit less than a fraction of the right labels, in whole percent as in the table."""
        return [arm for arm in self.methods if round(self.mean(arm, RIGHT), 2) < least]

    def count(self, arm: str) -> int:
        """Return the number of an arm's final runs."""
        return self.block.estimate(arm, ACCURACY).n

    def least_right(self) -> float:
        """Return the smallest mean over the methods of the right labels that are fitted, a fraction."""
        return min(self.mean(arm, RIGHT) for arm in self.methods)

    def at_edge(self, edge: str) -> list[str]:
        """Return the methods whose search chose its "largest" or "smallest" radius."""
        place = -1 if edge == "largest" else 0
        searches = {arm: self.study.content["arms"][arm]["search"]["rho"] for arm in self.methods}
        return [arm for arm, values in searches.items() if self.block.value(arm) == f"rho={sorted(values)[place]}"]

    def tied(self) -> list[str]:
        """Return the methods whose search found the highest accuracy more than once."""
        return [arm for arm in self.methods if self.block.tied(arm)]

    def list_other_values(self, again: "Side") -> list[str]:
        """Return the methods whose search chose another radius than in another set of runs of the study."""
        return [arm for arm in self.methods if self.block.value(arm) != again.block.value(arm)]

    def open_runs(self) -> list[str]:
        """Return the arms that have fewer final runs than the plan."""
        arms = self.study.content["arms"]
        return [arm for arm in arms if self.count(arm) < arms[arm]["seeds"]]


def name_all(arms: Iterable[str]) -> str:
    """Return "`a`, `b` and `c`", or "none"."""
    *others, last = [f"`{arm}`" for arm in arms] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def draw(sides: dict[str, Side], folder: Path) -> str:
    """Draw every method minus SGD and minus SGD with twice the epochs, one frame for each study; returns the file."""
    methods = sides["a"].methods[::-1]
    figure, frames = plt.subplots(1, len(sides), figsize=(9, 6), sharey=True, layout="constrained", dpi=120)
    for axes, (letter, side) in zip(frames, sides.items(), strict=True):
        plot(axes, side, methods)
        axes.set_title(f"({letter}) {side.study.content['title']}", loc="left", fontsize=9)
    frames[0].set_xlim(-1, None)
    frames[1].set_xlim(-WIDEST, WIDEST)
    figure.supxlabel("test accuracy at the last epoch minus SGD's, points (open: minus SGD with twice the epochs)")
    return save(figure, folder, "family")


def plot(axes: Axes, side: Side, methods: list[str]) -> None:
    """Draw the differences of one study."""
    for row, arm in enumerate(methods):
        for offset, other, face in ((0.15, "sgd", "#D55E00"), (-0.15, "sgd-2x", "white")):
            found = side.difference(arm, other)
            style = {"color": "#D55E00", "mfc": face, "markersize": 6, "capsize": 2}
            axes.errorbar(100 * found.mean, row + offset, xerr=100 * found.half_width, fmt="o", **style)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def make_section(sides: dict[str, Side]) -> str:
    """Return the section, with its heading."""
    environment = open_templates(estimate=format_estimate, names=name_all)
    text = environment.get_template("family.md.j2").render(
        **sides, again=Side("family_digits", RESULTS / "elsewhere"), large=read_blocks(Study("human_noise"))[0]
    )
    return wrap(text).rstrip("\n") + "\n\n"


def read_sides() -> dict[str, Side]:
    """Return both studies by their letters."""
    return {"a": Side("family_digits"), "b": Side("family_human")}


def main() -> int:
    """Write or check the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the section with the CSV files, write nothing")
    is_check = parser.parse_args().check
    sides, page = read_sides(), PAGE.read_text(encoding="utf-8")
    made = SECTION.sub(lambda _: make_section(sides), page)
    if is_check:
        print("the section is what the CSV files say" if made == page else "the section differs: write it again")
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    draw(sides, DOCS / "img")
    return 0


if __name__ == "__main__":
    sys.exit(main())
