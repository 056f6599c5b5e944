"""The finished runs of a study as tables: what results_page.py writes and results_figures.py draws."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sam_runner.reports.aggregate import Estimate, estimate
from scripts.studies.evidence import COLUMNS, METRIC_COLUMNS, RESULTS, Study, name_run


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
        self._by_seed = {arm: rows.set_index("seed") for arm, rows in self.finals.groupby("arm")}

    def column(self, arm: str, metric: str) -> pd.Series:
        """Return a metric of the arm's final runs by seed."""
        return self._by_seed.get(arm, self.finals.iloc[:0].set_index("seed"))[metric]

    def estimate(self, arm: str, metric: str) -> Estimate:
        """Return mean and interval of a metric over the arm's seeds."""
        return estimate(self.column(arm, metric))

    def difference(self, arm: str, other: str, metric: str) -> Estimate:
        """Return mean and interval of arm minus other, over the seeds that both have."""
        return self.pair(self.column(arm, metric), self.column(other, metric))

    @staticmethod
    def pair(values: pd.Series, others: pd.Series) -> Estimate:
        """Return mean and interval of the differences of two columns, over the seeds that both have."""
        return estimate((values - others).dropna())

    def baseline(self, arm: str) -> str:
        """Return the arm without SAM that an arm is compared with."""
        return str(self.study.content["arms"][arm].get("baseline", self.study.content.get("baseline", "sgd")))

    def value(self, arm: str) -> str:
        """Return the setting that the arm's search chose."""
        return next(iter(self.finals.loc[self.finals["arm"] == arm, "value"]), "")

    def tied(self, arm: str) -> list[str]:
        """Return the values that share the highest score of the arm's search, if there is more than one."""
        found = self.searches[self.searches["arm"] == arm]
        scores = found[f"final/{self.study.content['chosen_by']}"]
        values = list(found.loc[scores == scores.max(), "value"])
        return values if len(values) > 1 else []

    def cost(self, arm: str) -> float:
        """Return the gradient evaluations of a run divided by its baseline's; NaN where one is not recorded."""
        evaluations = self.finals.groupby("arm")["gradient_evaluations"].mean()
        return float(evaluations[arm] / evaluations.get(self.baseline(arm), float("nan")))

    def sam_arms(self) -> list[str]:
        """Return the arms with SAM whose runs have as many steps as those of their baseline."""
        steps = self.finals.groupby("arm")["steps"].mean()
        found = [arm for arm in self.arms if arm.partition("-")[0] == "sam"]
        return [arm for arm in found if steps[arm] == steps.get(self.baseline(arm))]

    def gain_at_cost(self, arm: str) -> Estimate | None:
        """Return `difference` of the test accuracy to SGD with twice the epochs, in the last epoch.

        None without such runs, and for an arm with another baseline than SGD.
        """
        if "sgd-2x" not in self.arms or self.baseline(arm) != "sgd":
            return None
        return self.difference(arm, "sgd-2x", "final/test/accuracy")

    def machines(self) -> dict[str, list[str]]:
        """Return the arms with final runs on a machine, by its processor or GPU."""
        found = {str(name): set(rows["arm"]) for name, rows in self.finals.groupby("machine")}
        return {name: [arm for arm in self.arms if arm in arms] for name, arms in found.items()}

    def by_epoch(self, arm: str, tag: str) -> pd.DataFrame:
        """Return a metric of the arm's final runs at the evaluated epochs (rows) by seed (columns).

        Runs that do not have the metric have no column.
        """
        found = {}
        for seed in self.column(arm, "status").index:
            lines = [json.loads(line) for line in self._file(arm, seed, "jsonl").read_text("utf-8").splitlines()]
            found[seed] = pd.Series({line["epoch"]: line[tag] for line in lines if tag in line}, dtype=float)
        return pd.DataFrame(found)

    def read_settings(self, arm: str, seed: int) -> dict[str, Any]:
        """Return the settings of a final run; names of folders have no braces, which YAML takes for a mapping."""
        text = self._file(arm, seed, "yaml").read_text(encoding="utf-8")
        settings: dict[str, Any] = yaml.safe_load(re.sub(r"\{([\w.]+)\}", r"\1", text))
        return settings

    def has_crops(self, arm: str) -> bool:
        """Whether the arm's final runs crop or flip their training images."""
        augment = self.read_settings(arm, int(self.column(arm, "status").index[0])).get("augment", {})
        return bool(augment.get("pad") or augment.get("flip"))

    def _file(self, arm: str, seed: int, suffix: str) -> Path:
        """Return a file that the study keeps of a final run."""
        return self.study.kept / f"{name_run(self.name, arm, self.value(arm), 'final', seed)}.{suffix}"


def format_estimate(found: Estimate, scale: float = 100.0, digits: int = 1, *, signed: bool = False) -> str:
    """Return "46.7 ± 1.2" (or without an interval for one seed); a dash without a value."""
    if found.n == 0:
        return "-"
    sign = "+" if signed else ""
    text = f"{found.mean * scale:{sign}.{digits}f}"
    return text if found.n < 2 else f"{text} ± {found.half_width * scale:.{digits}f}"


def is_above(gain: Estimate) -> bool:
    """Whether the 95% interval lies above 0; False for one seed, and for seeds that all have the same gain."""
    return gain.contains_zero is False and gain.mean > 0


def is_below(gain: Estimate) -> bool:
    """Whether the 95% interval lies below 0; False for one seed."""
    return gain.contains_zero is False and gain.mean < 0


def read_blocks(study: Study) -> list[Block]:
    """Return the blocks of a study that have finished runs; only runs on its main machine have seconds."""
    rows = pd.DataFrame(study.planned_rows(), columns=[*COLUMNS, *METRIC_COLUMNS])
    numbers = ["seed", "steps", "gradient_evaluations", "training_seconds", *METRIC_COLUMNS]
    rows[numbers] = rows[numbers].apply(pd.to_numeric, errors="coerce")
    is_elsewhere = ~rows["machine"].isin(rows.loc[rows["training_seconds"].notna(), "machine"].mode())
    rows.loc[is_elsewhere, "training_seconds"] = math.nan
    blocks = [Block(study, name, rows[rows["block"] == name]) for name in study.content["blocks"]]
    return [block for block in blocks if len(block.searches) or block.arms]


def at_edge(study: Study, block: Block, arm: str) -> bool:
    """Whether the value that an arm's search chose is the smallest or largest of those searched."""
    values = [job.value for job in study.search_jobs(block.name, arm)]
    return bool(values) and block.value(arm) in (values[0], values[-1])


class Repeats:
    """Runs on another machine, from docs/results/elsewhere/<study>.csv.

    Attributes:
        rows: The run elsewhere as a dictionary, with the column ``here`` for the accuracy that its command has in the
            study, NaN if the study does not have it.
        difference: Mean and interval of the test accuracy elsewhere minus that in the study, of the final runs.
    """

    def __init__(self, study: Study, folder: Path = RESULTS / "elsewhere") -> None:
        path, column = folder / f"{study.name}.csv", "final/test/accuracy"
        table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=[*COLUMNS, *METRIC_COLUMNS])
        finished = {command: row for command, row in study.rows.items() if row["status"] == "finished"}
        table["here"] = [float(finished[name][column]) if name in finished else math.nan for name in table["command"]]
        self.rows = table.to_dict("records")
        finals = table[table["role"] == "final"]
        self.difference = estimate((finals[column] - finals["here"]).dropna())

    @property
    def machines(self) -> str:
        """The processors of the runs elsewhere."""
        return ", ".join(sorted({row["machine"] for row in self.rows}))
