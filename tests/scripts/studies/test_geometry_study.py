"""The study of curvature and sharpness: its plan, its CSV file, and the numbers of docs/results/geometry.md."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from scripts.pages import geometry_page
from scripts.studies import geometry_study

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("smoke", [False, True])
def test_every_evaluated_epoch_of_the_plan_has_a_checkpoint(smoke):
    content = geometry_study.read_plan(smoke=smoke)
    settings = dict(word.split("=", 1) for word in content["settings"])
    assert len(settings) == len(content["settings"])
    epochs, every = int(settings["epochs"]), int(settings["eval_every"])
    assert json.loads(settings["checkpoint.keep_epochs"]) == list(range(every, epochs + 1, every))
    jobs = geometry_study.Study(content, Path(), Path(), {}).jobs()
    assert len({job.command for job in jobs}) == len({job.name for job in jobs}) == len(jobs)
    for part in ("over_time", "sweep"):
        own = content[part]
        count = len(own["lr"]) * len(own["rho"]) * own["seeds"]
        assert sum(part in job.parts for job in jobs) == count
    assert all(("optimizer=sgd" in job.words) == (job.rho == 0) for job in jobs)


def test_the_table_has_what_was_measured_and_the_same_command_repeats_it(tmp_path, monkeypatch):
    table = tmp_path / "geometry.csv"
    words = ["geometry_study.py", "--scale", "smoke", "--out", str(tmp_path), "--results", str(table)]
    monkeypatch.setattr(sys, "argv", words)
    assert geometry_study.main() == 0
    rows, content = pd.read_csv(table), table.read_bytes()
    assert list(rows["epoch"]) == [1, 2, 1, 2] and (rows["status"] == "finished").all()
    for row in rows.to_dict("records"):
        analysis = tmp_path / "runs" / row["run"] / "analysis"
        name = f"step-{row['step']:08d}.json"
        answers = json.loads((analysis / f"curvature-{name}").read_text())["answers"]
        answer, *whole = sorted(answers, key=lambda one: one["settings"]["examples"])
        eigenvalues = answer["values"]["eigenvalues"]
        assert row["lambda_max"] == pytest.approx(eigenvalues[0])
        assert row["ratio"] == pytest.approx(eigenvalues[0] / eigenvalues[4])
        assert answer["settings"]["batchnorm"] == row["batchnorm"] == "train"
        assert len(whole) == (row["epoch"] == 2)
        if whole:
            assert row["whole/lambda_max"] == pytest.approx(whole[0]["values"]["eigenvalues"][0])
            assert whole[0]["settings"]["examples"] == row["whole/examples"] == 64 > answer["settings"]["examples"]
            (answer,) = json.loads((analysis / f"sharpness-{name}").read_text())["answers"]
            key = "worst case, rho 0.1"
            assert row[f"sharpness/{key}"] == pytest.approx(answer["values"][key])
    assert rows["sharpness/worst case, rho 0.1"].notna().tolist() == [False, True] * 2
    assert geometry_study.main() == 0
    assert table.read_bytes() == content


def made_up():
    """A table of three seeds of SGD and of SAM, two epochs each; the same numbers as runs of the sweep."""
    draw, rows = np.random.default_rng(0), []
    for rho in (0.0, 0.1):
        for seed in range(3):
            for epoch in (4, 32):
                values = {name: float(draw.uniform(1, 2)) for name in ("lambda_max", "ratio", "worst", "loss gap")}
                rows.append(
                    {"run": f"{rho} {seed}", "parts": "over_time sweep", "rho": rho, "lr": (0.1, 0.1, 0.3)[seed],
                     "seed": seed, "epoch": epoch, "ratio": values["ratio"],
                     "lambda_max": values["lambda_max"] + 5 * (rho == 0),
                     "sharpness/worst": values["worst"], "sharpness/worst error": 0.0, "loss gap": values["loss gap"],
                     "train/accuracy": 0.5 if seed == 2 else 1.0,
                     "accuracy gap": values["loss gap"] ** 2}
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_means_intervals_and_correlations_are_those_of_scipy():
    table = made_up()
    results = geometry_page.Results(table, geometry_study.read_plan())
    last = table[table["epoch"] == 32]
    sgd, sam = (last[last["rho"] == rho]["lambda_max"].to_numpy() for rho in (0.0, 0.1))
    low, high = scipy.stats.t.interval(0.95, 2, loc=sgd.mean(), scale=scipy.stats.sem(sgd))
    found = results.mean(0, "lambda_max")
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    expected = scipy.stats.ttest_rel(sam, sgd).confidence_interval()
    found = results.difference(0.1, "lambda_max")
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(expected))
    interval = scipy.stats.ttest_rel(np.log(sgd), np.log(sam)).confidence_interval()
    middle = scipy.stats.gmean(sgd) / scipy.stats.gmean(sam)
    assert results.factor(0.1, "lambda_max") == pytest.approx((middle, *np.exp(interval)))
    assert results.verdict("lambda_max") == "SAM with rho = 0.1 has a smaller lambda_max than SGD."
    assert results.verdict("ratio") == "For rho = 0.1 no difference of lambda_max / lambda_5 is shown."
    table["lambda_max"] = 1 / table["lambda_max"]  # the factors become their inverses
    inverse = geometry_page.Results(table, geometry_study.read_plan())
    assert inverse.verdict("lambda_max") == "SAM with rho = 0.1 has a larger lambda_max than SGD."
    assert results.measures == ["worst"] and results.count_finished("over_time") == results.count_finished("sweep") == 6


def test_runs_of_one_setting_count_once_in_a_correlation():
    table = made_up()
    results = geometry_page.Results(table, geometry_study.read_plan())
    measured = [
        [table[(table["epoch"] == 32) & (table["rho"] == rho) & (table["lr"] == lr)][name].mean() for name in
         ("sharpness/worst", "loss gap", "accuracy gap")]
        for lr in (0.1, 0.3) for rho in (0.0, 0.1)
    ]  # fmt: skip
    sharpness, *gaps = zip(*measured, strict=True)
    expected = [scipy.stats.spearmanr(sharpness, gap).statistic for gap in gaps]
    assert [entry.rho for entry in results.correlations()] == pytest.approx(expected)
    for gap, values in zip(("loss gap", "accuracy gap"), gaps, strict=True):
        signs = [np.sign((sharpness[k + 1] - sharpness[k]) * (values[k + 1] - values[k])) for k in (0, 2)]
        assert list(results.within("worst", gap).items()) == [(0.1, signs[0]), (0.3, signs[1])]
        is_steady = min([*signs, expected[gaps.index(values)]]) > 0
        radii = scipy.stats.spearmanr([0.0, -0.1] * 2, values).statistic
        assert results.correlate_radius(gap) == pytest.approx(radii)
        assert results.steady(gap) == (["worst"] if is_steady else [])
    assert {entry.n for entry in results.correlations(only_fitted=True)} == {2}  # those with 0.3 do not fit


def test_the_page_is_what_the_table_says(tmp_path):
    page = geometry_page.make_page(tmp_path)
    assert page.read_text() == (ROOT / "docs/results/geometry.md").read_text()
