"""Compare the ranking of sam-suspects with cleanlab's on CIFAR-10N's wrong labels; write a part of docs/predict.md.

    pip install cleanlab
    python scripts/studies/suspects_study.py SWEEP...     # rank the runs of sweeps, write docs/results/suspects.csv
    python scripts/studies/suspects_study.py --page       # write the part of the page from the CSV file
    python scripts/studies/suspects_study.py --check      # exit with 1 if that part is not what the CSV file says

`COMMAND` makes a sweep. Every ranking is computed from the same probabilities of a run: for its training images, as
sam-suspects does, and for its held-out images, which have the same kind of labels but were not trained on.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sam_runner.config.optimizer.method import RadiusConfig
from sam_runner.inference.predictions import Predictions, predict_split
from sam_runner.inference.suspects import DEPTHS, average_precision, precision_at, rank_examples
from sam_runner.reports.aggregate import Estimate, estimate
from sam_runner.runs.folder import read_config
from sam_runner.runs.result import read_finished_result
from sam_runner.utils.files import read_json
from scripts.pages.results_tables import format_estimate

DOCS = Path(__file__).resolve().parents[2] / "docs"
TABLE, PAGE = DOCS / "results" / "suspects.csv", DOCS / "predict.md"
BEGIN, END = (
    "<!-- made by scripts/studies/suspects_study.py -->",
    "<!-- end of the part made by scripts/studies/suspects_study.py -->",
)
COMMAND = r"""```
sam-train -m data=image_folder data.root=CIFAR10 data.image_size=16 data.val_fraction=0.04 data.val_labels=noisy \
    data.train_fraction=0.0416667 noise=human noise.file=CIFAR-10_human.pt noise.set=worst model=resnet20 \
    batch_size=64 lr=0.05 epochs=14 eval_every=3 precision=fp32 seed=0,1,2 optimizer=sgd,sam rho=0.2
```"""
OPTIONS = {"ResNetCifar": "model=resnet20"}  # by the name of the class in the CSV file
OURS = "sam-suspects"
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")  # of cleanlab
FILTER = "find_label_issues"  # of cleanlab: what it finds first, then the others, both by self-confidence
PARTS = {"train": "training images", "validation": "held-out images"}
CHECKPOINTS = ("best", "last")


def rank_with_cleanlab(labels: Tensor, probabilities: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return how suspicious each label is by each method of cleanlab, and which labels it finds.

    Args:
        labels: Given labels, int64, (N,).
        probabilities: Probabilities of the classes, float64, (N, C).

    Returns:
        Scores (N,) by name, larger for a label that is to be checked earlier; whether `FILTER` finds it, bool, (N,).
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given = labels.numpy(), probabilities.numpy()
    scores = {name: -torch.tensor(get_label_quality_scores(*given, method=name)) for name in SCORES}
    is_found = torch.tensor(find_label_issues(*given, n_jobs=1))
    scores[FILTER] = scores["self_confidence"] + 2 * is_found
    return scores, is_found


def measure(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield a row for each ranking of the examples, with its quality."""
    examples, suspects = predictions.examples, rank_examples(predictions)
    is_wrong = examples.labels != examples.clean_labels
    scores, is_found = rank_with_cleanlab(examples.labels, predictions.log_probabilities.exp())
    predicted = predictions.log_probabilities.argmax(1)
    common = {
        "images": len(is_wrong), "wrong": int(is_wrong.sum()),
        "labels_predicted": float((predicted == examples.labels).double().mean()),
    }  # fmt: skip
    for name, score in {OURS: -suspects.self_confidence, **scores}.items():
        ranked = is_wrong[score.argsort(descending=True, stable=True)]
        row = common | {"ranking": name, "average_precision": average_precision(is_wrong, score)}
        row |= {f"precision_at_{depth}": precision_at(ranked, depth) for depth in DEPTHS if depth <= len(ranked)}
        if name == FILTER:
            found = int(is_found.sum())
            hits = int((is_found & is_wrong).sum())
            row |= {"found": found, "found_wrong": hits}
        yield row


def describe_run(folder: Path) -> dict[str, Any]:
    """Return the settings of a run that identify its rows."""
    config, environment = read_config(folder), read_json(folder / "environment.json")
    optimizer = config.optimizer
    rho = optimizer.rho if isinstance(optimizer, RadiusConfig) else 0.0
    return {
        "noise": config.noise.set, "optimizer": optimizer.name, "rho": rho, "model": config.model.target.split(".")[-1],
        "epochs": config.epochs, "seed": config.seed, "commit": environment["git_commit"],
        "cleanlab": version("cleanlab"), "torch": environment["packages"]["torch"],
    }  # fmt: skip


def measure_runs(folders: list[Path]) -> pd.DataFrame:
    """Return the rows of all runs, and of the mean of the probabilities of the runs that differ only in the seed."""
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        for checkpoint in CHECKPOINTS:
            arms: dict[tuple[Any, ...], list[Predictions]] = {}
            for folder in folders:
                facts, result = describe_run(folder), read_finished_result(folder) or {}
                facts |= {"part": part, "checkpoint": checkpoint}
                facts["epoch"] = result["best_epoch" if checkpoint == "best" else "epoch"]
                predictions = predict_split([folder], part, checkpoint)
                arm = tuple(value for name, value in facts.items() if name not in ("seed", "epoch"))
                arms.setdefault(arm, []).append(predictions)
                rows += [facts | row for row in measure(predictions)]
                print(folder.name, part, checkpoint, f"{rows[-1]['average_precision']:.4f}", flush=True)
            names = [name for name in facts if name not in ("seed", "epoch")]
            for arm, members in arms.items():
                logits = {folder: one for member in members for folder, one in member.logits.items()}
                mean = replace(members[0], logits=logits)
                rows += [dict(zip(names, arm, strict=True)) | {"seed": "mean"} | row for row in measure(mean)]
    return pd.DataFrame(rows)


class Results:
    """The rows of the CSV file, and what the page says of them."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self.runs = table[table["seed"] != "mean"]

    def column(self, name: str, **wanted: Any) -> pd.Series:
        """Return a column by seed, of the rows with the wanted values."""
        rows = self.runs
        for key, value in wanted.items():
            rows = rows[rows[key] == value]
        return rows.set_index("seed")[name]

    def mean(self, name: str, **wanted: Any) -> Estimate:
        """Return mean and interval of a column over the seeds."""
        return estimate(self.column(name, **wanted))

    def compare(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
        """Return the difference of average precision of two arms, over the seeds that both have; bold without 0."""
        values = (self.column("average_precision", **arm) for arm in (one, other))
        found = estimate(next(values).sub(next(values)).dropna())
        number = format_estimate(found, 1.0, 3, signed=True)
        return f"**{number}**" if found.contains_zero is False else number

    def arms(self, noise: str) -> list[tuple[str, float]]:
        """Optimizers and radii of the runs with a set of labels."""
        rows = self.runs[self.runs["noise"] == noise]
        arms = rows[["optimizer", "rho"]].drop_duplicates().sort_values("rho")
        return list(arms.itertuples(index=False, name=None))

    def table_of(self, noise: str) -> list[str]:
        """Return the lines of the table of a set of labels."""
        shown = [OURS, *SCORES[1:], FILTER]
        depths = [depth for depth in DEPTHS if f"precision_at_{depth}" in self.runs]
        heads = ["run", "n", "checkpoint", "images", "labels predicted", *(f"`{name}`" for name in shown)]
        heads += [f"precision at {depth:,}: {OURS}" for depth in depths]
        lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for part, title in PARTS.items():
            for optimizer, rho in self.arms(noise):
                for checkpoint in CHECKPOINTS:
                    arm = {"noise": noise, "optimizer": optimizer, "part": part, "checkpoint": checkpoint}
                    label = f"`optimizer={optimizer}`" if not rho else f"`optimizer={optimizer} rho={rho:g}`"
                    predicted = self.mean("labels_predicted", **arm, ranking=OURS)
                    cells = [label, str(predicted.n), checkpoint, title.split()[0], f"{predicted.mean:.0%}"]
                    cells += [
                        format_estimate(self.mean("average_precision", **arm, ranking=name), 1.0, 3) for name in shown
                    ]
                    cells += [
                        format_estimate(self.mean(f"precision_at_{depth}", **arm, ranking=OURS), 1.0, 2)
                        for depth in depths
                    ]
                    lines.append(f"| {' | '.join(cells)} |")
        return lines

    def compare_rankings(self, noise: str) -> dict[str, str]:
        """Return the differences of average precision with a set of labels, by what is compared."""
        found = {}
        names = [optimizer for optimizer, _ in self.arms(noise)]
        common = {"noise": noise, "part": "train", "ranking": OURS}
        for checkpoint in CHECKPOINTS:
            for optimizer in names:
                ours = common | {"checkpoint": checkpoint, "optimizer": optimizer}
                for name in (*SCORES[1:], FILTER):
                    key = f"{optimizer}, {checkpoint} checkpoint: `{name}` minus {OURS}"
                    found[key] = self.compare(ours | {"ranking": name}, ours)
        for optimizer in names:
            best, last = (common | {"checkpoint": name, "optimizer": optimizer} for name in CHECKPOINTS)
            found[f"{optimizer}: best minus last checkpoint"] = self.compare(best, last)
            held_out = self.compare(last | {"part": "validation"}, last)
            found[f"{optimizer}, last checkpoint: held-out minus training images"] = held_out
        for checkpoint in CHECKPOINTS if {"sgd", "sam"} <= {*names} else ():
            sgd, sam = (common | {"checkpoint": checkpoint, "optimizer": name} for name in ("sgd", "sam"))
            found[f"{checkpoint} checkpoint: SAM minus SGD"] = self.compare(sam, sgd)
        return found

    def list_means(self, noise: str) -> dict[str, str]:
        """Return the average precision of the mean of the probabilities of the runs of each arm."""
        rows = self.table[(self.table["seed"] == "mean") & (self.table["noise"] == noise)]
        rows = rows[(rows["part"] == "train") & (rows["ranking"] == OURS)]
        return {
            f"{row['optimizer']}, {row['checkpoint']} checkpoint": f"{row['average_precision']:.3f}"
            for row in rows.to_dict("records")
        }

    def table_by_noise(self, head: str, describe: Callable[[str], dict[str, str]]) -> list[str]:
        """Return the lines of a table with a column for each set of labels, from the cells of such a column."""
        columns = {noise: describe(noise) for noise in self.runs["noise"].unique()}
        lines = [f"| {head} | {' | '.join(f'`{noise}`' for noise in columns)} |", "|" + " --- |" * (1 + len(columns))]
        for key in dict.fromkeys(key for found in columns.values() for key in found):
            lines.append(f"| {key} | {' | '.join(found.get(key, '-') for found in columns.values())} |")
        return lines


def make_part(table: pd.DataFrame) -> str:
    """Return the part of the page, without its marks."""
    results, runs = Results(table), table[table["seed"] != "mean"]
    own, same = (
        runs[runs["ranking"] == name]["average_precision"].reset_index(drop=True) for name in (OURS, SCORES[0])
    )
    lines = []
    for noise in runs["noise"].unique():
        rows = runs[(runs["noise"] == noise) & (runs["part"] == "train")]
        first = rows.iloc[0]
        text = (
            f"Labels `{noise}` of CIFAR-10N: {first['images']:,} training images of 16x16 pixels, of which"
            f" {first['wrong']:,} ({first['wrong'] / first['images']:.0%}) have a wrong label,"
            f" `{OPTIONS[first['model']]}`, {first['epochs']} epochs."
            f" A random order has the average precision {first['wrong'] / first['images']:.2f}:"
        )
        lines += [*textwrap.wrap(text, 120, break_on_hyphens=False), "", *results.table_of(noise), ""]
    columns = (
        f"The columns `{OURS}` to `{FILTER}` have the average precision of these rankings. Values are means over n"
        " seeds with 95% intervals (Student's t). `best` is the checkpoint with the best accuracy on held-out images,"
        " whose labels are as wrong as those of the training images. No run was trained on the images of the rows"
        " *held-out*."
    )
    largest = float((own - same).abs().max())
    source = (
        f"cleanlab {runs['cleanlab'].iloc[0]} ranked the images from the same probabilities. Its `self_confidence`"
        f" gives the ranking of sam-suspects (largest difference of average precision: {largest:g}). The function"
        " `find_label_issues` returns a part of the images; in its column these come first in the ranking."
    )
    differences = (
        "Differences of average precision. They are on the training images unless the line says *held-out*. Intervals"
        " that do not contain 0 are bold:"
    )
    means = f"Average precision of {OURS} with the mean of the probabilities of all seeds:"
    command = (
        "This command made the runs with the labels `worst`; those with the labels `aggre` have `noise.set=aggre`."
        " [All numbers](results/suspects.csv)."
    )
    tables = {
        differences: results.table_by_noise("difference", results.compare_rankings),
        means: results.table_by_noise("runs", results.list_means),
    }
    for words, table_lines in {columns: [], source: [], **tables, command: []}.items():
        lines += [*textwrap.wrap(words, 120, break_on_hyphens=False, break_long_words=False), ""]
        lines += [*table_lines, ""] if table_lines else []
    return "\n".join([*lines, COMMAND])


def replace_part(page: str, part: str) -> str:
    """Return a page with another part between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def main() -> int:
    """Measure, write or check. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", type=Path, help="folders of sweeps")
    parser.add_argument("--page", action="store_true", help="write the part of docs/predict.md")
    parser.add_argument("--check", action="store_true", help="compare it with the CSV file instead")
    given = parser.parse_args()
    if given.sweeps:
        torch.set_num_threads(1)
        folders = [path.parent for sweep in given.sweeps for path in sorted(sweep.glob("*/result.json"))]
        measure_runs(folders).to_csv(TABLE, index=False, lineterminator="\n", float_format="%.6f")
    page = PAGE.read_text(encoding="utf-8")
    expected = replace_part(page, make_part(pd.read_csv(TABLE, dtype={"seed": str})))
    if given.check:
        return int(page != expected)
    if given.page:
        PAGE.write_text(expected, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
