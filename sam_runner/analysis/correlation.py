"""Whether sharpness predicts generalisation over some runs: rank correlations and a sentence."""

from dataclasses import dataclass

import pandas as pd
from scipy import stats

MIN_RUNS = 5  # with fewer, even a perfect order has a p-value above 0.05
LEVEL = 0.05


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a measure of sharpness with a generalisation gap.

    Attributes:
        measure: Name of the measure.
        gap: Name of the gap.
        rho: Spearman's correlation in [-1, 1]; NaN where one of them does not vary.
        p: Two-sided p-value by Holm's correction for all correlations of the table; NaN where `rho` is.
        n: Number of runs.
    """

    measure: str
    gap: str
    rho: float
    p: float
    n: int


def correlate(table: pd.DataFrame, measures: list[str], gaps: list[str]) -> list[Correlation]:
    """Return the rank correlation of every measure with every gap.

    Args:
        table: One row for each run, with the columns `measures` and `gaps`.
        measures: Columns of sharpness.
        gaps: Columns of gaps, larger ones worse.
    """
    found = []
    for gap in gaps:
        for measure in measures:
            pair = table[[measure, gap]].dropna()
            varies = len(pair) > 2 and bool((pair.nunique() > 1).all())
            result = stats.spearmanr(pair[measure], pair[gap]) if varies else None
            rho, p = (float(result.statistic), float(result.pvalue)) if result else (float("nan"), float("nan"))
            found.append(Correlation(measure, gap, rho, p, len(pair)))
    return _holm(found)


def _holm(found: list[Correlation]) -> list[Correlation]:
    """Return the correlations with p-values by Holm's step-down correction for their number."""
    tested = sorted((entry for entry in found if entry.p == entry.p), key=lambda entry: entry.p)
    corrected, largest = {}, 0.0
    for number, entry in enumerate(tested):
        largest = max(largest, min(1.0, entry.p * (len(tested) - number)))
        corrected[entry.measure, entry.gap] = largest
    return [Correlation(e.measure, e.gap, e.rho, corrected.get((e.measure, e.gap), float("nan")), e.n) for e in found]


def conclusion(found: list[Correlation], gap: str) -> str:
    """Say in one or two sentences whether sharpness predicts a gap.

    Args:
        found: Correlations of `correlate`.
        gap: Name of the gap.
    """
    entries = [entry for entry in found if entry.gap == gap and entry.p == entry.p]
    n = max((entry.n for entry in found), default=0)
    if n < MIN_RUNS:
        return f"{n} runs are too few to say whether sharpness predicts the {gap}: give at least {MIN_RUNS}."
    if not entries:
        return f"The {gap} or the sharpness does not vary over the {n} runs, so nothing can be said."
    significant = [entry for entry in entries if entry.p < LEVEL]
    best = max(entries, key=lambda entry: abs(entry.rho))
    if not significant:
        return (
            f"No measure of sharpness predicts the {gap} over these {n} runs: the largest rank correlation, of "
            f"{best.measure}, is {best.rho:+.2f} (p = {best.p:.2g} after correction), which chance explains."
        )
    positive = sorted((entry for entry in significant if entry.rho > 0), key=lambda entry: -entry.rho)
    negative = sorted((entry for entry in significant if entry.rho < 0), key=lambda entry: entry.rho)
    parts = []
    if positive:
        names = ", ".join(f"{entry.measure} ({entry.rho:+.2f})" for entry in positive)
        parts.append(f"Sharper runs have a larger {gap} over these {n} runs, by {names}.")
    if negative:
        names = ", ".join(f"{entry.measure} ({entry.rho:+.2f})" for entry in negative)
        parts.append(f"Against expectation, sharper runs have a smaller {gap} over these {n} runs, by {names}.")
    without = len(entries) - len(significant)
    if without:
        parts.append(f"{without} of {len(entries)} measures show no relation that chance does not explain.")
    return " ".join(parts)
