"""Whether sharpness predicts generalisation: rank correlations with Holm's correction, and what is said about them."""

import math

import pandas as pd
import pytest
from scipy import stats

from sam_runner.analysis.correlation import Correlation, conclusion, correlate

N = 8
TABLE = pd.DataFrame(
    {
        "up": [2.0**i for i in range(N)],
        "down": [-float(i) for i in range(N)],
        "noise": [3, 1, 2, 4, 1.5, 3.5, 2.5, 0.5],
        "same": [1.0] * N,
        "gap": [0.1 * i for i in range(N)],
    }
)


def test_correlations_are_of_ranks_and_corrected_for_their_number():
    found = {entry.measure: entry for entry in correlate(TABLE, ["up", "down", "noise", "same"], ["gap"])}
    assert found["up"].rho == pytest.approx(1) and found["down"].rho == pytest.approx(-1)
    assert math.isnan(found["same"].rho) and found["up"].n == N
    single = [stats.spearmanr(TABLE[name], TABLE["gap"]) for name in ("up", "noise")]
    assert found["noise"].p == pytest.approx(float(single[1].pvalue))  # the largest of three is not changed
    assert found["up"].p == pytest.approx(min(1, 3 * float(single[0].pvalue)), abs=1e-12)


def entry(measure, rho, p, n=N):
    return Correlation(measure, "gap", rho, p, n)


def test_the_conclusion_says_what_the_numbers_say():
    assert "Sharper runs have a larger gap over these 8 runs, by up (+0.90)." in conclusion(
        [entry("up", 0.9, 0.01)], "gap"
    )
    against = conclusion([entry("up", -0.9, 0.01), entry("flat", 0.1, 0.8)], "gap")
    assert "Against expectation" in against and "1 of 2 measures show no relation" in against
    nothing = conclusion([entry("up", 0.4, 0.3), entry("flat", 0.1, 0.8)], "gap")
    assert "No measure of sharpness predicts the gap" in nothing and "of up, is +0.40" in nothing
    assert conclusion([entry("up", 1.0, 0.01, n=4)], "gap").startswith("4 runs are too few")
    assert "does not vary" in conclusion([entry("up", math.nan, math.nan)], "gap")
