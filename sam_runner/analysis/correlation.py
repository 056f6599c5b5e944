"""Whether sharpness predicts generalisation: rank correlations over runs with different settings, and a sentence."""

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

MIN_SETTINGS = 5  # with 4, even a perfect order has p = 2/24, above `LEVEL`
LEVEL = 0.05
MAX_PERMUTATIONS = 9_999  # all orders of up to 7 runs, else as many random ones
ROUNDING = 1e-12  # of a correlation


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a measure of sharpness with a generalisation gap.

    Attributes:
        measure: Name of the measure.
        gap: Name of the gap.
        rho: Spearman's correlation in [-1, 1]; NaN where one of them does not vary, or with fewer than 3 settings.
        p: Two-sided p-value of a permutation test, by Holm's correction for all correlations of the table; NaN where
            `rho` is.
        n: Number of settings that have both values.
        left_out: Names of the runs that lack one of them.
    """

    measure: str
    gap: str
    rho: float
    p: float
    n: int
    left_out: tuple[str, ...] = ()


def correlate(
    table: pd.DataFrame, measures: list[str], gaps: list[str], settings: Sequence[Hashable]
) -> list[Correlation]:
    """Return the rank correlation of every measure with every gap over the settings.

    Runs that differ only in the seed are not independent, so their means count as one setting.

    Args:
        table: One row for each run, with the columns ``run`` (its name), `measures` and `gaps`. NaN in a row leaves
            the run out.
        measures: Columns of sharpness.
        gaps: Columns of gaps, larger ones worse.
        settings: Settings of each row without the seed.
    """
    numbers: dict[Hashable, int] = {}
    groups = pd.Series([numbers.setdefault(setting, len(numbers)) for setting in settings], index=table.index)
    found = []
    for gap in gaps:
        for measure in measures:
            runs = table[[measure, gap]].dropna()
            left_out = tuple(table.loc[table.index.difference(runs.index), "run"])
            pair = runs.groupby(groups[runs.index]).mean()
            varies = len(pair) > 2 and bool((pair.nunique() > 1).all())
            rho, p = permutation_test(pair[measure], pair[gap]) if varies else (math.nan, math.nan)
            found.append(Correlation(measure, gap, rho, p, len(pair), left_out))
    return _correct(found)


def permutation_test(first: Iterable[float], second: Iterable[float]) -> tuple[float, float]:
    """Return Spearman's rank correlation and its two-sided p-value.

    The p-value is the share of the orders of one sample whose |correlation| is at least the observed one: of all n!
    orders, or of `MAX_PERMUTATIONS` random ones with a fixed seed, the observed one included (Phipson and Smyth, 2010).
    It is right for few runs and for ties, where the usual p-value by Student's t is an approximation.

    Args:
        first: n values, not all equal.
        second: n values, not all equal.
    """
    x, y = (ranks - ranks.mean() for ranks in map(stats.rankdata, (list(first), list(second))))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    n, observed = len(x), float(x @ y)
    if math.factorial(n) <= MAX_PERMUTATIONS:
        found = np.abs(x[list(itertools.permutations(range(n)))] @ y)
    else:
        orders = np.random.default_rng(0).permuted(np.tile(x, (MAX_PERMUTATIONS, 1)), axis=1)
        found = np.append(np.abs(orders @ y), abs(observed))
    correlation = round(observed, 12)  # the same digits on every processor
    return correlation, float((found >= abs(observed) - ROUNDING).mean())


def _correct(found: list[Correlation]) -> list[Correlation]:
    """Return the correlations with p-values by Holm's step-down correction for their number."""
    tested = sorted((entry for entry in found if entry.p == entry.p), key=lambda entry: entry.p)
    corrected, largest = {}, 0.0
    for number, entry in enumerate(tested):
        largest = max(largest, min(1.0, entry.p * (len(tested) - number)))
        corrected[entry.measure, entry.gap] = largest
    return [replace(entry, p=corrected.get((entry.measure, entry.gap), math.nan)) for entry in found]


def conclusion(found: list[Correlation], gap: str) -> str:
    """Say in a few sentences whether sharpness predicts a gap, and which runs were left out.

    Args:
        found: Correlations of `correlate`.
        gap: Name of the gap.
    """
    own = [entry for entry in found if entry.gap == gap]
    left_out = list(dict.fromkeys(name for entry in own for name in entry.left_out))
    told = f" Not finite, so left out: {', '.join(left_out)}." if left_out else ""
    return _say(own, gap, sum(entry.p == entry.p for entry in found)) + told


def _say(own: list[Correlation], gap: str, num_tests: int) -> str:
    entries = [entry for entry in own if entry.p == entry.p]
    n = max((entry.n for entry in own), default=0)
    if n < MIN_SETTINGS:
        return (
            f"{n} settings say nothing about whether sharpness predicts the {gap}: give runs with at least "
            f"{MIN_SETTINGS} (runs that differ only in the seed count as one)."
        )
    if not entries:
        return f"The {gap} or the sharpness does not vary over the {n} settings, so nothing can be said."
    if 2 / math.factorial(n) * num_tests >= LEVEL:
        return (
            f"{n} settings say nothing about whether sharpness predicts the {gap}: by chance one of {num_tests} "
            "correlations can be perfect. Give runs with more settings, or fewer radii and values of m."
        )
    significant = [entry for entry in entries if entry.p < LEVEL]
    best = max(entries, key=lambda entry: abs(entry.rho))
    if not significant:
        return (
            f"No measure of sharpness is shown to predict the {gap} over these {n} settings: the largest rank "
            f"correlation, of {best.measure}, is {best.rho:+.2f} (p = {best.p:.2g} after correction), which chance can "
            "explain."
        )
    positive = sorted((entry for entry in significant if entry.rho > 0), key=lambda entry: -entry.rho)
    negative = sorted((entry for entry in significant if entry.rho < 0), key=lambda entry: entry.rho)
    parts = []
    if positive:
        parts.append(f"By {_name_measures(positive)}, sharper networks have a larger {gap} ({n} settings).")
    if negative:
        parts.append(
            f"By {_name_measures(negative)}, sharper networks have a smaller {gap} ({n} settings), against expectation."
        )
    without = len(entries) - len(significant)
    if without:
        parts.append(f"For {without} of {len(entries)} measures the relation can be due to chance.")
    return " ".join(parts)


def _name_measures(entries: list[Correlation]) -> str:
    names = [f'"{entry.measure}" (rank correlation {entry.rho:+.2f})' for entry in entries]
    return f"the measure {names[0]}" if len(names) == 1 else f"the measures {' and '.join(names)}"
