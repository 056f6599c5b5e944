"""Whether sharpness predicts generalisation: rank correlations with Holm's correction, and what is said about them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sam_runner.analysis.correlation import Correlation, conclusion, correlate, permutation_test

N = 8
TABLE = pd.DataFrame(
    {
        "run": [f"run {i}" for i in range(N)],
        "up": [2.0**i for i in range(N)],
        "down": [-float(i) for i in range(N)],
        "noise": [3, 1, 2, 4, 1.5, 3.5, 2.5, 0.5],
        "same": [1.0] * N,
        "gap": [0.1 * i for i in range(N)],
    }
)


def test_correlations_are_of_ranks_and_corrected_for_their_number():
    found = {entry.measure: entry for entry in correlate(TABLE, ["up", "down", "noise", "same"], ["gap"], range(N))}
    assert found["up"].rho == pytest.approx(1) and found["down"].rho == pytest.approx(-1)
    assert math.isnan(found["same"].rho) and found["up"].n == N
    single = [permutation_test(TABLE[name], TABLE["gap"])[1] for name in ("up", "noise")]
    assert found["noise"].p == single[1]  # the largest of three is not changed
    assert found["up"].p == found["down"].p == pytest.approx(3 * single[0])


def standard_ranks(values):
    """Ranks with mean 0 and length 1: their dot product is the correlation of the ranks."""
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    return ranks / np.linalg.norm(ranks)


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_p_values_of_few_runs_are_those_of_all_orders(n, ties):
    """Oracle: the ranks' correlation in each of the n! orders."""
    draw = np.random.default_rng(n).normal(size=(2, n))
    first, second = (draw.round(0) if ties else draw) + np.linspace(0, 1, n).round(0)
    rho, p = permutation_test(first, second)
    assert rho == pytest.approx(stats.spearmanr(first, second).statistic)
    orders = np.array([*itertools.permutations(standard_ranks(first))])
    assert p == pytest.approx(np.mean(np.abs(orders @ standard_ranks(second)) >= abs(rho) - 1e-9), abs=1e-12)


def test_p_values_of_more_runs_agree_with_scipy():
    """Of random orders: within 4 standard errors of a difference of two such tests."""
    first, second = np.random.default_rng(4).normal(size=(2, 12)) + np.linspace(0, 1.5, 12)
    rho, p = permutation_test(first, second)
    other = stats.permutation_test(
        (standard_ranks(first),), lambda orders, axis: orders @ standard_ranks(second), permutation_type="pairings",
        vectorized=True, n_resamples=3000, random_state=0,
    ).pvalue  # fmt: skip
    assert 0.01 < p < 0.5 and abs(p - other) < 4 * (p * (1 - p) * (1 / 3000 + 1 / 9999)) ** 0.5
    assert permutation_test(first, second) == (rho, p)
    assert permutation_test(range(30), range(30))[1] == pytest.approx(1e-4)


def test_runs_without_a_finite_sharpness_are_left_out_by_name():
    table = TABLE.assign(worst=TABLE["up"])
    table.loc[[2, 5], "worst"] = math.nan
    found = correlate(table, ["worst", "up"], ["gap"], range(N))
    assert [entry.n for entry in found] == [6, 8] and found[0].rho == pytest.approx(1)
    assert found[0].left_out == ("run 2", "run 5") and found[1].left_out == ()
    assert conclusion(found, "gap").endswith("Not finite, so left out: run 2, run 5.")
    few = correlate(table.iloc[:4], ["worst"], ["gap"], range(4))
    assert "3 settings say nothing" in conclusion(few, "gap") and "left out: run 2." in conclusion(few, "gap")


def test_runs_that_differ_only_in_the_seed_count_once():
    """The copies would make eight settings in a perfect order; four say nothing."""
    more = TABLE.iloc[:4].assign(run=[f"copy {i}" for i in range(4)], up=TABLE["up"] + 0.1, noise=[2.5, 2, 6, 4])
    table = pd.concat([TABLE.iloc[:4], more], ignore_index=True)
    table.loc[5, "down"] = math.nan
    up, noise, down = correlate(table, ["up", "noise", "down"], ["gap"], [*"abcd", *"abcd"])
    assert (up.n, noise.n, down.n) == (4, 4, 4) and down.left_out == ("copy 1",)
    means = [2.75, 1.5, 4, 4]  # of "noise"
    assert noise.rho == pytest.approx(stats.spearmanr(means, TABLE["gap"][:4]).statistic)
    assert down.rho == pytest.approx(-1) and conclusion([up], "gap").startswith("4 settings say nothing")


def test_five_settings_say_nothing_about_many_measures():
    """The smallest p-value of 5 runs is 2/120; with 3 tests it cannot be below 0.05."""
    two = correlate(TABLE.iloc[:5], ["up", "noise"], ["gap"], range(5))
    assert "sharper networks have a larger gap" in conclusion(two, "gap") and two[0].p == pytest.approx(2 * 2 / 120)
    three = correlate(TABLE.iloc[:5], ["up", "down", "noise"], ["gap"], range(5))
    assert "by chance one of 3 correlations" in conclusion(three, "gap")


def entry(measure, rho, p, n=N):
    return Correlation(measure, "gap", rho, p, n)


def test_the_conclusion_says_what_the_numbers_say():
    alone = conclusion([entry("up", 0.9, 0.01)], "gap")
    assert alone == 'By the measure "up" (rank correlation +0.90), sharper networks have a larger gap (8 settings).'
    against = conclusion([entry("up", -0.9, 0.01), entry("flat", 0.1, 0.8)], "gap")
    assert (
        "smaller gap (8 settings), against expectation. For 1 of 2 measures the relation can be due to chance"
        in against
    )
    nothing = conclusion([entry("up", 0.4, 0.3), entry("flat", 0.1, 0.8)], "gap")
    assert "No measure of sharpness is shown to predict the gap" in nothing and "of up, is +0.40" in nothing
    assert conclusion([entry("up", 1.0, 0.01, n=4)], "gap").startswith("4 settings say nothing")
    assert "does not vary" in conclusion([entry("up", math.nan, math.nan)], "gap")
