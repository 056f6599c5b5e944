"""Groups of runs that differ only in the seed; means and intervals against scipy."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sam_runner.reports.aggregate import (
    aggregate,
    estimate,
    group_over_seeds,
    informative_settings,
    ranking_sign,
    student_t,
)
from sam_runner.reports.report import make_report
from sam_runner.reports.results import load_results
from tests.helpers import config_of
from tests.run_folders import lay, leave


def groups_of(folder):
    """(settings, values of test/accuracy) of each group."""
    runs = group_over_seeds(load_results([folder]))
    settings = informative_settings(runs)
    return [(group[settings].iloc[0].to_dict(), list(group["test/accuracy"])) for _, group in runs.groupby("group")]


@pytest.mark.parametrize("freedom", [1, 2, 3, 10, 100])
def test_quantiles_of_student(freedom):
    assert student_t(pd.Series([freedom]))[0] == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


def test_the_interval_is_that_of_a_t_test():
    values = [0.81, 0.86, 0.9, 0.83]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    runs = pd.DataFrame({"group": [0, 0, 0, 0, 1, 2], "accuracy": [*values, 0.5, np.nan]})
    summary = aggregate(runs, "accuracy")
    n, mean, half_width = summary.loc[0]
    assert n == 4
    assert mean == pytest.approx(np.mean(values))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))
    assert list(summary["n"]) == [4, 1, 0]
    assert list(np.isnan(summary["half_width"])) == [False, True, True]


def settings_of(tmp_path, *commands):
    """The settings that a report of runs with these words has as columns."""
    for number, words in enumerate(commands):
        leave(tmp_path / str(number), config_of(*words.split()), accuracy=0.5)
    return informative_settings(group_over_seeds(load_results([tmp_path])))


@pytest.mark.parametrize(
    ("commands", "settings"),
    [
        (["optimizer=asam", "optimizer=fisher_sam"], ["optimizer", "rho"]),  # eta 0.01 and 1: each has its own
        (["optimizer=sgd", "optimizer=adamw"], ["optimizer", "optimizer.base._target_"]),  # momentum and betas
        (["optimizer=asam", "optimizer=asam optimizer.eta=0.1"], ["optimizer.eta"]),
        (["optimizer=asam", "optimizer=fisher_sam", "optimizer=asam optimizer.eta=0.1"],
         ["optimizer", "optimizer.eta", "rho"]),
        (["optimizer=sgd", "optimizer=sgd optimizer.base.momentum=0.8", "optimizer=adamw"],
         ["optimizer", "optimizer.base._target_", "optimizer.base.momentum"]),
        (["optimizer=sam", "optimizer=sgd optimizer.base.nesterov=false"],
         ["optimizer", "optimizer.base.nesterov", "rho"]),
    ],
)  # fmt: skip
def test_settings_that_the_method_or_the_base_optimizer_says_are_no_columns(commands, settings, tmp_path):
    assert settings_of(tmp_path, *commands) == settings


def test_an_estimate_leaves_out_missing_values():
    values = [0.2, -0.1, 0.4]
    n, mean, half_width = estimate(pd.Series([*values, np.nan]))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (n, mean - half_width, mean + half_width) == (3, pytest.approx(low), pytest.approx(high))
    assert estimate(pd.Series(values)).contains_zero is True
    assert estimate(pd.Series([1.0, 1.1])).contains_zero is False
    one, none = estimate(pd.Series([0.3])), estimate(pd.Series([], dtype=float))
    assert (one.n, one.mean, one.contains_zero) == (1, 0.3, None)
    assert (none.n, none.contains_zero) == (0, None)
    assert np.isnan(none.mean)


def test_the_p_value_is_that_of_the_example_of_students_paper():
    extra_sleep = pd.Series([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])  # Student, Biometrika 1908, differences
    assert estimate(extra_sleep).p_value == pytest.approx(0.002833, abs=5e-7)  # R 4.3: t.test(..., paired = TRUE)
    assert estimate(pd.Series([0.0, 0.0])).p_value == 1
    assert np.isnan(estimate(pd.Series([0.1])).p_value)


@pytest.mark.parametrize("differences", [(0.1, 0.1), (0.61 - 0.6, 0.81 - 0.8, 0.31 - 0.3)])  # equal but for rounding
def test_equal_values_have_an_interval_of_width_0_and_no_test(differences):
    found = estimate(pd.Series(differences))
    assert found.half_width == pytest.approx(0, abs=1e-12)
    assert found.contains_zero is None
    assert np.isnan(found.p_value)


@pytest.mark.parametrize(
    ("metrics", "sign"),
    [
        (("test/accuracy", "best/test_ema/accuracy", "validation/accuracy_top5", "train/recovered"), 1),
        (("test/nll", "train/loss", "validation_ema/calibration_error", "train/memorised", "best/train/memorised"), -1),
        (("train/loss_perturbed", "train/loss_gap", "train/grad_norm", "lr", "telemetry/lambda_max"), 0),
        (("telemetry/eps_share/loss", "loss", "mean_error"), 0),  # ends that are names of other metrics
    ],
)
def test_only_metrics_of_a_set_of_images_have_a_direction(metrics, sign):
    assert {ranking_sign(metric) for metric in metrics} == {sign}


def test_runs_are_grouped_by_all_settings_but_the_seed(sweep):
    folder, accuracies = sweep
    found = groups_of(folder)
    assert [tuple(settings) for settings, _ in found] == [("optimizer", "rho")] * 4
    assert [settings["optimizer"] for settings, _ in found] == ["sgd", "sam", "sam", "sam"]
    assert [settings["rho"] for settings, _ in found[1:]] == [0.02, 0.05, 0.1]
    assert [values for _, values in found] == list(accuracies.values())


def test_only_settings_that_differ_distinguish_groups(tmp_path):
    for seed in (0, 1):
        for size in (32, 16, 128):
            lay(tmp_path / f"{seed}-{size}", seed=seed, batch_size=size, run_dir=f"r{seed}{size}", device="cpu")
    assert [settings for settings, _ in groups_of(tmp_path)] == [{"batch_size": size} for size in (16, 32, 128)]


def test_a_seed_counts_once(tmp_path):
    for number, device in enumerate(("cpu", "cuda")):  # the same settings in reports, another fingerprint
        lay(tmp_path / device, seed=1, device=device, accuracy=0.5 + number / 10)
    assert groups_of(tmp_path) == [({}, [0.6])]
    for name, minute in (("cpu", 3), ("cuda", 2), ("equal", 1)):  # the last by name is the first to end
        folder = tmp_path / name if name != "equal" else lay(tmp_path / name, seed=1, device="cpu", accuracy=0.1)
        status = {"status": "finished", "time": f"2026-11-28T08:0{minute}:00+00:00"}
        (folder / "status.json").write_text(json.dumps(status))
    assert groups_of(tmp_path) == [({}, [0.5])]
    assert make_report([tmp_path]).remarks == [
        "1 finished run does not count (equal): a later run has the same settings and seed, and other results.",
        "1 finished run does not count (cuda): a later run has the same seed and differs only in device, which reports"
        " do not compare. Report such runs separately.",
    ]


def test_runs_that_are_evaluated_at_other_epochs_are_two_groups_where_held_out_images_choose_the_epoch(tmp_path):
    best = {"selected_by": "validation/accuracy", "best": {"test/accuracy": 0.5}}
    for every in (1, 3):
        lay(tmp_path / "last" / str(every), eval_every=every)
        lay(tmp_path / "best" / str(every), eval_every=every, result=best)
    assert [settings for settings, _ in groups_of(tmp_path / "best")] == [{"eval_every": 1}, {"eval_every": 3}]
    assert len(groups_of(tmp_path / "last")) == 1
    assert "differs only in eval_every" in " ".join(make_report([tmp_path / "last"]).remarks)
    lay(tmp_path / "last" / "sgd", optimizer="sgd", result=best)  # of the runs that have the setting all are equal
    assert [list(settings) for settings, _ in groups_of(tmp_path / "last")] == [["optimizer", "rho"]] * 2


def test_a_setting_of_one_method_is_a_column_only_where_its_runs_differ(tmp_path):
    leave(tmp_path / "sgd", config_of("optimizer=sgd"), accuracy=0.5)
    leave(tmp_path / "two", config_of("optimizer=sam", "optimizer.p=2"), accuracy=0.5)
    assert [list(settings) for settings, _ in groups_of(tmp_path)] == [["optimizer", "rho"]] * 2
    leave(tmp_path / "inf", config_of("optimizer=sam", "optimizer.p=inf"), accuracy=0.5)
    assert [list(settings) for settings, _ in groups_of(tmp_path)] == [["optimizer", "optimizer.p", "rho"]] * 3


def test_a_setting_of_all_methods_is_a_column_also_where_it_follows_the_optimizer(tmp_path):
    leave(tmp_path / "sgd", config_of("optimizer=sgd"), accuracy=0.5)
    leave(tmp_path / "sam", config_of("optimizer=sam", "optimizer.m=32"), accuracy=0.5)
    assert [list(settings) for settings, _ in groups_of(tmp_path)] == [["optimizer", "optimizer.m", "rho"]] * 2


def test_a_setting_that_is_null_in_some_runs_separates_them(tmp_path):
    for number, words in enumerate(((), ("grad_clip=5",), ("grad_clip=2",))):
        leave(tmp_path / str(number), config_of("optimizer=sgd", *words), accuracy=number / 10)
    assert [values for _, values in groups_of(tmp_path)] == [[0.0], [0.2], [0.1]]


def test_values_of_several_types_are_sorted(tmp_path):
    for number, value in enumerate(("true", "auto", "false")):
        leave(tmp_path / str(number), config_of("optimizer=sgd", f"channels_last={value}"), accuracy=0.5)
    assert [settings["channels_last"] for settings, _ in groups_of(tmp_path)] == [False, True, "auto"]


def test_label_files_of_two_teachers_are_two_groups_and_one_file_for_each_seed_is_one(tmp_path):
    for seed in (0, 1, 10):
        for teacher in ("sgd", "sam"):
            noise = {"_target_": "sam_runner.data.noise.relabelled", "file": f"0.1/{teacher}-seed{seed}/labels.npy"}
            lay(tmp_path / f"{teacher}{seed}", seed=seed, noise=noise)
    assert [(settings, len(values)) for settings, values in groups_of(tmp_path)] == [
        ({"noise.file": f"0.1/{teacher}-seed*/labels.npy"}, 3) for teacher in ("sam", "sgd")
    ]
