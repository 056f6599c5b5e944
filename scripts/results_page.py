"""Make docs/results.md, its figures and docs/results/<study>.md from the CSV files that scripts/evidence.py writes.

    python scripts/results_page.py            # write the pages and figures
    python scripts/results_page.py --check    # exit with 1 if the pages are not what the CSV files say; write nothing

Every number of the pages is computed here. The text around them is scripts/evidence/results.md.j2.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from evidence import COLUMNS, FAILED, METRIC_COLUMNS, RESULTS, STUDIES, Study, name_run
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sam_runner.reports.aggregate import Estimate, estimate
from sam_runner.reports.comparison import FITTED_ACCURACY, FITTED_WRONG_LABELS, Fit

plt.switch_backend("Agg")
DOCS = RESULTS.parent
OTHER_PAGES = {Path("results/geometry.md")}  # of scripts/geometry_page.py
COLOURS = {"sgd": "#000000", "sgd-2x": "#666666", "sam": "#D55E00", "sam-m32": "#E69F00"}
OTHER_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = "os^DvP*X<>"  # of the blocks


class Block:
    """The finished final runs of one block of a study.

    Args:
        study: The study.
        name: The block.
        rows: Rows of the plan that belong to the block.
    """

    def __init__(self, study: Study, name: str, rows: pd.DataFrame) -> None:
        self.study, self.name, self.title = study, name, study.content["block_titles"][name]
        self.searches = rows[rows["role"] == "search"]
        self.searches = self.searches[self.searches["status"] == "finished"]
        self.finals = rows[(rows["role"] == "final") & (rows["status"] == "finished")]
        self.arms = [arm for arm in study.content["arms"] if arm in set(self.finals["arm"])]

    def column(self, arm: str, metric: str) -> pd.Series:
        """Return a metric of the arm's final runs by seed."""
        return self.finals[self.finals["arm"] == arm].set_index("seed")[metric]

    def estimate(self, arm: str, metric: str) -> Estimate:
        """Return mean and interval of a metric over the arm's seeds."""
        return estimate(self.column(arm, metric))

    def difference(self, arm: str, other: str, metric: str) -> Estimate:
        """Return mean and interval of arm minus other, over the seeds that both have."""
        return estimate((self.column(arm, metric) - self.column(other, metric)).dropna())

    def baseline(self, arm: str) -> str:
        """Return the arm without SAM that an arm is compared with."""
        return str(self.study.content["arms"][arm].get("baseline", self.study.content.get("baseline", "sgd")))

    def value(self, arm: str) -> str:
        """Return the setting that the arm's search chose."""
        return next(iter(self.finals.loc[self.finals["arm"] == arm, "value"]), "")

    def cost(self, arm: str) -> float:
        """Return the gradient evaluations of a run over those of its baseline; NaN where one is not recorded."""
        evaluations = self.finals.groupby("arm")["gradient_evaluations"].mean()
        return float(evaluations[arm] / evaluations.get(self.baseline(arm), float("nan")))

    def fit(self, arm: str, seeds: pd.Index) -> Fit:
        """Return how far the arm's runs of some seeds have fitted their training labels."""
        tags = ("final/train/accuracy", "final/train/accuracy_clean", "final/train/memorised")
        return Fit(*(float(self.column(arm, tag).reindex(seeds).mean()) for tag in tags))


def read_blocks(study: Study) -> list[Block]:
    """Return the blocks of a study that have finished final runs."""
    rows = pd.DataFrame(study.planned_rows(), columns=[*COLUMNS, *METRIC_COLUMNS])
    numbers = ["seed", "gradient_evaluations", "training_seconds", *METRIC_COLUMNS]
    rows[numbers] = rows[numbers].apply(pd.to_numeric, errors="coerce")
    blocks = [Block(study, name, rows[rows["block"] == name]) for name in study.content["blocks"]]
    return [block for block in blocks if len(block.searches) or block.arms]


def format_estimate(found: Estimate, scale: float = 100.0, digits: int = 1, *, signed: bool = False) -> str:
    """Return "46.7 ± 1.2" (or without an interval for one seed); a dash without a value."""
    if found.n == 0:
        return "-"
    sign = "+" if signed else ""
    text = f"{found.mean * scale:{sign}.{digits}f}"
    return text if found.n < 2 else f"{text} ± {found.half_width * scale:.{digits}f}"


def format_mean(found: Estimate) -> str:
    """Return the mean without digits after the point; a dash without a value."""
    return f"{found.mean:,.0f}" if found.n else "-"


def make_anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def list_runs(study: Study) -> list[dict[str, Any]]:
    """Return the rows of a study with the name of each run, and whether its settings are kept."""
    runs, planned = [], set(study.planned_commands())
    for row in study.rows.values():
        name = name_run(row["block"], row["arm"], row["value"], row["role"], int(row["seed"]))
        is_planned = row["command"] in planned
        is_kept = is_planned and (study.kept / f"{name}.yaml").is_file()
        runs.append({**row, "name": name, "is_kept": is_kept, "is_planned": is_planned})
    return runs


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


def draw_benefit(blocks: list[Block], folder: Path) -> str | None:
    """Draw SAM minus its baseline against the wrong labels that the baseline memorised, one mark for each seed."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained", dpi=120)
    for number, block in enumerate(blocks):
        for arm in [name for name in block.arms if name.partition("-")[0] == "sam"]:
            baseline = block.baseline(arm)
            gain = (block.column(arm, "final/test/accuracy") - block.column(baseline, "final/test/accuracy")).dropna()
            memorised = block.column(baseline, "final/train/memorised").reindex(gain.index).fillna(0.0)
            axes.plot(
                100 * memorised, 100 * gain, MARKERS[number % len(MARKERS)], alpha=0.8,
                color=colour(block.study, arm), mfc="none" if block.fit(baseline, gain.index).is_low else None,
                label=f"{block.title}, {arm}",
            )  # fmt: skip
    if not axes.lines:
        plt.close(figure)
        return None
    axes.axhline(0, color="black", linewidth=0.8)
    figure.supxlabel(
        "wrong labels that the baseline memorised at the last epoch, in % (0 without wrong labels)", fontsize=9
    )
    axes.set_ylabel("test accuracy at the last epoch,\nSAM minus its baseline, points", fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, frameon=False)
    return save(figure, folder, "results_benefit")


def save(figure: Any, folder: Path, name: str) -> str:
    """Write a figure as PNG without the date, so that the same numbers give the same bytes; returns the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close(figure)
    return f"{name}.png"


def make_pages(docs: Path) -> None:
    """Write results.md, results/<study>.md and the figures into a folder."""
    studies = [Study(path.stem) for path in sorted(STUDIES.glob("*.yaml"))]
    studies = sorted((study for study in studies if study.rows), key=lambda study: study.content["page_order"])
    blocks = {study.name: read_blocks(study) for study in studies}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STUDIES), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"estimate": format_estimate, "mean": format_mean, "anchor": make_anchor}
    figures = {study.name: draw_study(study, blocks[study.name], docs / "img") for study in studies}
    figures["benefit"] = draw_benefit([block for found in blocks.values() for block in found], docs / "img")
    is_open = any(study.count_runs()["open"] for study in studies)
    page = environment.get_template("results.md.j2").render(
        studies=studies, blocks=blocks, figures=figures, is_open=is_open,
        failed={study.name: [run for run in list_runs(study) if run["is_planned"] and run["status"] in FAILED]
                for study in studies},
        fitted_accuracy=FITTED_ACCURACY, fitted_wrong_labels=FITTED_WRONG_LABELS,
    )  # fmt: skip
    (docs / "results.md").write_text(page, encoding="utf-8")
    for study in studies:
        runs = environment.get_template("runs.md.j2").render(study=study, runs=list_runs(study))
        (docs / "results").mkdir(exist_ok=True)
        (docs / "results" / f"{study.name}.md").write_text(runs, encoding="utf-8")


def find_differences(docs: Path = DOCS) -> list[str]:
    """Return the pages in `docs` that are not what the CSV files say, by name; also those that no study has."""
    with tempfile.TemporaryDirectory() as folder:
        make_pages(Path(folder))
        expected = {
            path.relative_to(folder): path.read_text(encoding="utf-8") for path in sorted(Path(folder).rglob("*.md"))
        }
    found = {Path("results.md"), *(path.relative_to(docs) for path in (docs / "results").glob("*.md"))} - OTHER_PAGES
    texts = {page: (docs / page).read_text(encoding="utf-8") for page in found if (docs / page).is_file()}
    return [str(page) for page in sorted({*expected, *texts}) if expected.get(page) != texts.get(page)]


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the pages with the CSV files, write nothing")
    if not parser.parse_args().check:
        make_pages(DOCS)
        return 0
    wrong = find_differences()
    print(f"pages that are not what the CSV files say: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
