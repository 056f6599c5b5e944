"""Group finished runs that differ only in the seed, and compute means and 95% intervals over the seeds."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sam_runner.config.optimizer import METHODS
from sam_runner.config.optimizer.method import OptimizerConfig
from sam_runner.reports.results import METRIC_SETS, setting_columns

if TYPE_CHECKING:
    from pandas.core.groupby import SeriesGroupBy

SHARED_OPTIMIZER_KEYS = {f"optimizer.{entry.name}" for entry in dataclasses.fields(OptimizerConfig)}
BASE_OPTIMIZER = "optimizer.base._target_"
METHOD_SETTINGS = {  # names in reports of the settings that not every method has
    entry.metadata["key"].short or f"optimizer.{entry.name}"
    for method in METHODS
    for entry in dataclasses.fields(method)
    if f"optimizer.{entry.name}" not in SHARED_OPTIMIZER_KEYS and "key" in entry.metadata
}
WITHOUT_SAM = ("sgd", "none")  # names of the methods that are the base optimizer alone
DIRECTIONS = {  # 1: the largest value is the best, -1: the smallest; of the metrics of a set of images
    **dict.fromkeys(("accuracy", "accuracy_top5", "accuracy_clean", "recovered"), 1),
    **dict.fromkeys(("nll", "loss", "calibration_error", "memorised"), -1),
}
ROUNDING = 1e-9  # an interval whose half width is a smaller fraction of the mean has the width 0 but for rounding


def ranking_sign(metric: str) -> int:
    """Return 1 for a metric whose largest value is the best, -1 for one whose smallest value is, 0 for all others.

    Neither a large nor a small value is better in itself for the others: lr, norms, the largest eigenvalue, or the
    loss at w + eps, which grows with rho.
    """
    name_of_set, _, name = metric.removeprefix("best/").partition("/")
    return DIRECTIONS.get(name, 0) if name_of_set.removesuffix("_ema") in METRIC_SETS else 0


def varying_settings(results: pd.DataFrame) -> list[str]:
    """Return the settings that have more than one value in a table of `results_frame`."""
    return [name for name in setting_columns(results) if results[name].nunique(dropna=False) > 1]


def informative_settings(runs: pd.DataFrame) -> list[str]:
    """Return the varying settings without those that another column says: the method, or the base optimizer.

    SAM's `optimizer.p` differs between SAM and SGD runs only because SGD has no such setting, and `optimizer.eta`
    between ASAM and Fisher SAM because each has its own; `optimizer` says as much. The momentum of SGD and the betas of
    AdamW are left out beside `optimizer.base._target_`. `eval_every` is left out if the runs that have it agree.
    """
    return [name for name in varying_settings(runs) if _is_informative(runs, name)]


def _is_informative(runs: pd.DataFrame, name: str) -> bool:
    if name == "eval_every":
        return runs[name].nunique() > 1
    if not name.startswith("optimizer.") or name in (BASE_OPTIMIZER, *SHARED_OPTIMIZER_KEYS):
        return True
    is_of_the_base = name.startswith("optimizer.base.")
    owner = BASE_OPTIMIZER if is_of_the_base else "optimizer"
    differs_within = runs.groupby(owner, dropna=False)[name].nunique(dropna=False).max() > 1
    return bool(differs_within and (is_of_the_base or runs[name].nunique() > 1))


def group_over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return the finished runs with a column ``group``, sorted by settings and seed.

    Runs of one group differ only in the seed, and in settings that reports ignore, such as the device. A seed counts
    once in a group: of several runs one is kept, see `find_replacements`. Groups are numbered 0, 1, ... in the
    order of their settings: missing values first, SGD before other methods, then by value.
    """
    runs = results[results["status"] == "finished"]
    settings = varying_settings(runs)
    runs = runs.drop(list(find_replacements(results)))
    runs = runs.sort_values([*settings, "seed"], key=_sortable, na_position="first")
    return runs.assign(group=runs.groupby(settings, dropna=False, sort=False).ngroup() if settings else 0)


def find_replacements(results: pd.DataFrame) -> dict[int, int]:
    """Return the rows of the finished runs that do not count, each with the row of the run that counts instead.

    A run does not count if one that has ended later has the same seed and the same values of all settings that reports
    show.
    """
    runs = results[results["status"] == "finished"].sort_values("time", kind="stable", na_position="first")
    rows = pd.Series(runs.index, runs.index)
    equal = rows.groupby([runs[name] for name in (*varying_settings(runs), "seed")], dropna=False, sort=False)
    kept = equal.transform("last")
    return {int(row): int(kept[row]) for row in rows[rows != kept]}


def _sortable(column: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(str, na_action="ignore").replace(dict.fromkeys(WITHOUT_SAM, ""))


class Estimate(NamedTuple):
    """The mean of one value per seed with its 95% interval (Student's t).

    Attributes:
        n: Number of values.
        mean: Their mean; NaN without a value.
        half_width: Half the width of the interval; NaN with fewer than two values.
    """

    n: int
    mean: float
    half_width: float

    @property
    def is_constant(self) -> bool:
        """Whether at least two values are all equal and not 0.

        Then their spread is 0 and there is no t-test. Accuracies are multiples of 1 / number of images, so that two
        seeds easily have equal differences by chance.
        """
        return self.half_width <= ROUNDING * abs(self.mean) and self.mean != 0

    @property
    def contains_zero(self) -> bool | None:
        """Whether the interval contains 0; None without an interval, and where all values are equal and not 0."""
        return None if math.isnan(self.half_width) or self.is_constant else abs(self.mean) <= self.half_width

    @property
    def p_value(self) -> float:
        """p-value of the t-test whose hypothesis is a mean of 0, two-sided; NaN where `contains_zero` is None.

        1 if all values are 0.
        """
        from scipy.special import stdtr  # imported here: it takes 0.1 s

        if self.contains_zero is None:
            return math.nan
        if self.half_width == 0:
            return 1.0
        quantile = float(student_t(pd.Series([self.n - 1]))[0])
        return float(2 * stdtr(self.n - 1, -abs(self.mean) / self.half_width * quantile))


def estimate(values: pd.Series) -> Estimate:
    """Return mean and interval of one value per seed; missing values do not count."""
    summary = aggregate(pd.DataFrame({"group": 0, "value": values}), "value")
    if summary.empty:
        return Estimate(0, math.nan, math.nan)
    n, mean, half_width = summary.iloc[0]
    return Estimate(int(n), float(mean), float(half_width))


def aggregate(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean over seeds of a metric and half the width of its 95% interval (Student's t), by group.

    Args:
        runs: A table of `group_over_seeds`.
        metric: A metric, e.g. ``test/accuracy``.

    Returns:
        Columns n (seeds that have the metric), mean (NaN for n = 0) and half_width (NaN for n < 2), indexed by group.
    """
    values = runs.groupby("group")[metric]
    n = values.count()
    half_width: pd.Series = student_t(n - 1) * values.std() / np.sqrt(n)
    return pd.DataFrame({"n": n, "mean": values.mean(), "half_width": half_width})


def student_t(degrees_of_freedom: pd.Series) -> pd.Series:
    """Return the 97.5% quantile of Student's t distribution; NaN below 1 degree of freedom."""
    from scipy.special import stdtrit  # imported here: it takes 0.1 s

    quantiles: pd.Series = stdtrit(degrees_of_freedom.where(degrees_of_freedom > 0), 0.975)
    return quantiles


def rows_by_group(table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Return the rows of a table that is indexed by group, as dictionaries."""
    rows = table.to_dict("index").values()  # pandas 2 makes no "records" of a table without columns
    groups = zip(table.index.to_list(), rows, strict=True)
    return {int(group): {str(name): value for name, value in row.items()} for group, row in groups}


def values_by_seed(runs: pd.DataFrame, metric: str) -> "SeriesGroupBy[Any, Any]":
    """Return the values of a metric by group, indexed by seed; `runs` is a table of `group_over_seeds`."""
    return runs.set_index("seed").groupby("group")[metric]


def paired_difference(values: "SeriesGroupBy[Any, Any]", group: int, baseline: int) -> Estimate:
    """Return the mean difference of a metric between two groups over the seeds that both have.

    Args:
        values: The metric, of `values_by_seed`: it is grouped once for all differences.
        group: The group.
        baseline: The group whose values are subtracted.
    """
    return estimate(values.get_group(group) - values.get_group(baseline))
