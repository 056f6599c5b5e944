"""Differences to a baseline: pairs, intervals against scipy, equal settings and equal cost."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sam_runner.reports.aggregate import METHOD_SETTINGS, paired_difference, values_by_seed
from sam_runner.reports.comparison import Baseline, Fit, find_baselines, measure_fit, parse_baseline
from sam_runner.reports.output.files import write_report
from sam_runner.reports.output.latex import write_narrow_table
from sam_runner.reports.report import make_report
from sam_runner.utils.errors import InputError
from tests.helpers import config_of
from tests.run_folders import lay, leave

VALUE = st.floats(-1, 1, width=32)


def runs_of(first, second, seeds=None):
    """Two groups of runs with the given values, by seed."""
    rows = [(0, seed, value) for seed, value in enumerate(first)]
    rows += [(1, seed, value) for seed, value in zip(seeds or range(len(second)), second, strict=True)]
    return pd.DataFrame(rows, columns=["group", "seed", "accuracy"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(VALUE, VALUE), min_size=2, max_size=8))
def test_the_interval_is_that_of_a_paired_t_test(pairs):
    first, second = np.array(pairs, dtype=float).T
    found = paired_difference(values_by_seed(runs_of(first, second), "accuracy"), 0, 1)
    assert found.n == len(pairs)
    assert found.mean == pytest.approx(np.mean(first - second), abs=1e-12)
    if np.ptp(first - second) > 1e-6:
        result = stats.ttest_rel(first, second)
        low, high = result.confidence_interval(0.95)
        assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high), abs=1e-9)
        assert found.p_value == pytest.approx(result.pvalue, rel=1e-6, abs=1e-12)
        if abs(result.pvalue - 0.05) > 1e-6:
            assert found.contains_zero == (result.pvalue > 0.05)


def test_only_seeds_that_both_have_are_pairs():
    found = paired_difference(
        values_by_seed(runs_of([0.5, 0.6, 0.7], [0.9, 0.5, 0.2], seeds=[2, 0, 9]), "accuracy"), 0, 1
    )
    assert found.n == 2
    assert found.mean == pytest.approx(((0.7 - 0.9) + (0.5 - 0.5)) / 2)
    one = paired_difference(values_by_seed(runs_of([0.5], [0.25]), "accuracy"), 0, 1)
    assert (one.n, one.mean, one.contains_zero) == (1, 0.25, None)
    none = paired_difference(values_by_seed(runs_of([0.5], [0.25], seeds=[7]), "accuracy"), 0, 1)
    assert (none.n, none.contains_zero) == (0, None)


def test_a_baseline_has_the_same_settings_but_those_of_the_method():
    assert {"optimizer", "rho", "optimizer.p", "optimizer.ascent_steps"} <= METHOD_SETTINGS | {"optimizer"}
    assert {"optimizer.m", "lr"}.isdisjoint(METHOD_SETTINGS)
    nan = float("nan")
    rows = [("sgd", nan, 0.1, None), ("sgd", nan, 0.2, None), ("sam", 0.1, 0.2, None), ("sam", 0.3, 0.1, None),
            ("sam", 0.1, 0.2, 5.0), ("sam", 0.4, 0.2, None)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["optimizer", "rho", "lr", "grad_clip"])
    baseline = Baseline({"optimizer": "sgd"})
    assert find_baselines(table, baseline, pd.Series(nan, table.index)) == {2: 1, 3: 0, 5: 1}
    assert find_baselines(table, Baseline({"rho": "0.1"}), pd.Series(nan, table.index)) == {5: 2}


def test_a_baseline_with_another_base_optimizer_has_other_settings_of_it():
    nan, adamw = float("nan"), "torch.optim.AdamW"
    rows = [("none", nan, 0.1, adamw, "[0.9, 0.99]"), ("sam", 0.1, 0.1, "torch.optim.SGD", nan),
            ("sam", 0.1, 0.2, "torch.optim.SGD", nan)]  # fmt: skip
    names = ["optimizer", "rho", "lr", "optimizer.base._target_", "optimizer.base.betas"]
    table = pd.DataFrame(rows, columns=names)
    baseline = Baseline(parse_baseline("optimizer=none,optimizer.base._target_=AdamW", table))
    assert find_baselines(table, baseline, pd.Series(nan, table.index)) == {1: 0}


def test_groups_without_a_baseline_of_their_settings_are_named(tmp_path):
    for number, (optimizer, epochs) in enumerate([("sgd", 3), ("sam", 3), ("sam", 4), ("sam", 5)]):
        leave(tmp_path / f"{number}", config_of(f"optimizer={optimizer}", f"epochs={epochs}"), accuracy=0.5)
    remark = "sam, epochs 4, rho 0.05 and 1 other group have no difference: no run of sgd has the same other settings."
    assert remark in make_report([tmp_path]).remarks


def test_at_equal_cost_the_baseline_is_trained_for_longer():
    rows = [("sgd", None, 10), ("sgd", None, 20), ("sgd", None, 40), ("sam", 0.1, 10), ("sam", 0.1, 40)]
    table = pd.DataFrame(rows, columns=["optimizer", "rho", "epochs"])
    costs = pd.Series([100.0, 205.0, 400.0, 200.0, 800.0])
    assert find_baselines(table, Baseline({"optimizer": "sgd"}, "cost"), costs) == {3: 1}
    assert find_baselines(table, Baseline({"optimizer": "sgd"}), costs) == {3: 0, 4: 2}
    costs[3] = float("nan")
    assert find_baselines(table, Baseline({"optimizer": "sgd"}, "cost"), costs) == {}


def test_at_equal_cost_a_longer_baseline_may_be_evaluated_at_fewer_epochs():
    settings = pd.DataFrame({"optimizer": ["sgd", "sam"], "epochs": [20, 10], "eval_every": [2, 1]})
    costs = pd.Series([20.0, 20.0])
    assert find_baselines(settings, Baseline({"optimizer": "sgd"}, "cost"), costs) == {1: 0}
    assert find_baselines(settings, Baseline({"optimizer": "sgd"}), costs) == {}


def test_at_equal_cost_both_sides_have_a_patience_or_neither():
    rows = [("sgd", None, 20, None), ("sgd", None, 20, 30), ("sam", 0.1, 10, 50), ("sam", 0.1, 10, None)]
    table = pd.DataFrame(rows, columns=["optimizer", "rho", "epochs", "early_stopping.patience"])
    costs = pd.Series(100.0, table.index)
    for against in ("cost", "seconds"):
        assert find_baselines(table, Baseline({"optimizer": "sgd"}, against), costs) == {2: 1, 3: 0}
        without = Baseline({"optimizer": "sgd", "early_stopping.patience": "-"}, against)
        assert find_baselines(table, without, costs) == {1: 0, 2: 0, 3: 0}  # asked for
    assert find_baselines(table.drop(1), Baseline({"optimizer": "sgd"}, "cost"), costs) == {3: 0}


def test_a_report_compares_at_equal_cost(tmp_path):
    for seed, (optimizer, epochs) in itertools.product(range(3), (("sgd", 3), ("sgd", 6), ("sam", 3))):
        gradients = 10 * epochs * (2 if optimizer == "sam" else 1)
        accuracy = {("sgd", 3): 0.5, ("sgd", 6): 0.7, ("sam", 3): 0.8}[optimizer, epochs] + seed / 100
        config = config_of(f"optimizer={optimizer}", f"epochs={epochs}", f"seed={seed}")
        result = {"gradient_evaluations": gradients, "training_seconds": 1.0}
        leave(tmp_path / f"{optimizer}{epochs}{seed}", config, accuracy=accuracy, result=result)
    at_settings, at_cost = make_report([tmp_path]), make_report([tmp_path], against="cost")
    sam = next(group for group, label in at_cost.labels.items() if label.startswith("sam"))
    assert at_settings.differences[sam][1].mean == pytest.approx(0.3)
    assert at_cost.differences[sam][1].mean == pytest.approx(0.1)
    assert list(at_cost.table["gradients"]) == ["30", "60", "60"]
    assert "at equal gradient evaluations" in " ".join(at_cost.notes)
    by_seconds = make_report([tmp_path], against="seconds")
    assert "seconds" in by_seconds.table


def test_runs_without_a_recorded_cost_are_named(sweep):
    notes = " ".join(make_report([sweep[0]], against="cost").notes)
    assert "12 of 12 runs have no gradient_evaluations in result.json" in notes


def test_a_group_without_a_baseline_of_equal_cost_is_named(tmp_path):
    typed = ["sam-train", "-m", "optimizer=sgd,sam", "epochs=3", "rho=0.05,0.1", "seed=4"]
    for optimizer, rho, gradients in (("sgd", 0.05, 300), ("sam", 0.05, 600), ("sam", 0.1, 599), ("sam", 0.2, 100)):
        lay(tmp_path / "s" / f"{optimizer}{rho}", optimizer=optimizer, rho=rho, seed=4,
            result={"gradient_evaluations": gradients}, environment={"command": typed})  # fmt: skip
    report = make_report([tmp_path], against="cost")
    assert report.differences == {}
    assert [note for note in report.notes if "no baseline" in note] == [
        "sam, rho 0.2 has no baseline of equal cost (100 gradient evaluations): train sgd with epochs=1.",
        "sam, rho 0.1 and 1 other group have no baseline of equal cost (599 gradient evaluations): train sgd with"
        " epochs=6.",
    ]
    assert [(purpose, command) for purpose, command in report.next_commands if "--against" in purpose] == [
        (f"sgd with epochs={epochs}, for --against cost",
         f"sam-train -m optimizer=sgd epochs={epochs} seed=4 sweep_name=s")
        for epochs in (1, 6)
    ]  # fmt: skip


def test_a_longer_baseline_and_the_fit_of_both_sides_are_named_without_being_asked_for(tmp_path):
    typed = ["sam-train", "-m", "optimizer=sgd,sam", "epochs=3", "seed=4"]
    noise = {"_target_": "sam_runner.data.noise.symmetric", "rate": 0.4, "include_true_class": False}
    for optimizer, gradients, wrong in (("sgd", 300, 0.9), ("sam", 600, 0.125)):
        lay(tmp_path / "s" / optimizer, optimizer=optimizer, seed=4, noise=noise,
            result={"gradient_evaluations": gradients}, environment={"command": typed},
            final={"train/accuracy": 0.95, "train/accuracy_clean": 0.75, "train/memorised": wrong})  # fmt: skip
    report = make_report([tmp_path])
    assert (
        "Of the training labels, sam, rho 0.05 predicts 75.0% of the right and 12.5% of the wrong ones; sgd predicts"
        " 75.0% of the right and 90.0% of the wrong ones."
    ) in report.findings
    assert [purpose for purpose, _ in report.next_commands] == ["sgd with epochs=6, for --against cost"]


def test_a_baseline_of_one_epoch_cannot_be_given_half_of_its_cost(tmp_path):
    for optimizer, gradients in (("sgd", 100), ("sam", 45)):
        lay(tmp_path / optimizer, optimizer=optimizer, result={"gradient_evaluations": gradients})
        path = tmp_path / optimizer / "config.yaml"
        path.write_text(path.read_text().replace("epochs: 3\n", "epochs: 1\n"))
    report = make_report([tmp_path], against="cost")
    assert "train sgd with another number of epochs." in " ".join(report.notes)
    assert not [purpose for purpose, _ in report.next_commands if "--against" in purpose]


@pytest.mark.parametrize("patience", [3, 30])
def test_no_length_is_advised_where_early_stopping_may_end_the_run_before(patience, tmp_path):
    for optimizer, gradients in (("sgd", 80), ("sam", 120)):
        config = config_of(f"optimizer={optimizer}", "data.val_fraction=0.1", f"early_stopping.patience={patience}")
        leave(tmp_path / optimizer, config, accuracy=0.5, result={"gradient_evaluations": gradients})
    at_settings, at_cost = make_report([tmp_path]), make_report([tmp_path], against="cost")
    (remark,) = [text for text in at_cost.remarks if "no baseline" in text]
    cost = next(text for text in at_settings.findings if " costs " in text)
    commands = [purpose for report in (at_settings, at_cost) for purpose, _ in report.next_commands]
    if patience == 3:
        assert remark.endswith("train sgd with another number of epochs (early_stopping.patience may end it before).")
        assert "train sgd with another number of epochs as well (early_stopping.patience may end it before)" in cost
        assert commands == []
    else:  # 30 epochs cannot be ended by it
        assert remark.endswith("train sgd with epochs=30.")
        assert "train sgd for 1.5 times the epochs as well" in cost
        assert commands == ["sgd with epochs=30, for --against cost"] * 2


def test_a_baseline_of_equal_cost_that_differs_in_the_patience_is_not_sold_as_a_question_of_length(tmp_path):
    for optimizer, patience in (("sgd", "null"), ("sam", 50)):
        config = config_of(f"optimizer={optimizer}", "data.val_fraction=0.1", f"early_stopping.patience={patience}")
        leave(tmp_path / optimizer, config, accuracy=0.5, result={"gradient_evaluations": 80})
    report = make_report([tmp_path], against="cost")
    assert report.differences == {}
    assert (
        "sam, early_stopping.patience 50, rho 0.05 has no baseline of equal cost (80 gradient evaluations): train sgd"
        " with the same other settings."
    ) in report.remarks


def test_the_cost_is_in_images_where_batch_sizes_differ(tmp_path):
    for size, (optimizer, passes), seed in itertools.product((64, 128), (("sgd", 1), ("sam", 2)), range(2)):
        costs = {"gradient_evaluations": passes * 1280 / size, "images_backward": passes * 1280}
        costs |= {"training_seconds": 10.0 + 10 * seed}
        config = config_of(f"optimizer={optimizer}", f"batch_size={size}", f"seed={seed}")
        leave(tmp_path / f"{optimizer}{size}-{seed}", config, accuracy=0.5, result=costs)
    report = make_report([tmp_path], baseline="batch_size=64")
    assert list(report.table["images backward"]) == ["1,280", "1,280", "2,560", "2,560"]
    shown = " ".join([*report.findings, *report.remarks, write_narrow_table(report)])
    assert "gradient evaluations" not in shown and "Cost: images in backward passes relative to" in shown
    assert "Compare images backward instead." in shown
    assert "images backward: images in backward passes of a run: its cost, as the batch sizes differ" in " ".join(
        report.notes
    )
    assert "images_backward" in report.to_csv().partition("\n")[0]
    assert "gradient_evaluations" not in report.to_table_csv()
    at_cost = make_report([tmp_path], baseline="batch_size=64", against="cost")
    assert len(at_cost.differences) == 2
    for text in (dict(at_cost.terms)["difference to batch_size=64"], write_narrow_table(at_cost)):
        assert " at equal images in backward passes" in text
    page = write_report(at_cost, tmp_path, "sizes").read_text()
    assert "<h1>sizes at equal images in backward passes</h1>" in page
    with_sgd = make_report([tmp_path], against="cost")
    assert [missing.length for missing in with_sgd.missing_baselines] == [{"epochs": 40}] * 2
    assert "(2,560 images in backward passes)" in with_sgd.to_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", "colour does not distinguish these runs\n  accepted: optimizer, rho"),
        ("optimizer=adam", "no run has optimizer=adam\n  accepted: optimizer=sgd, optimizer=sam"),
        ("optimizer=sgd,rho=0.1", "no run has all of these settings"),
        ("optimizer", "optimizer is not of the form key=value\n  accepted: optimizer=sgd, optimizer=sam"),
        ("sgd", r"--baseline sgd: sgd is not of the form key=value\n  did you mean optimizer=sgd\?"),
        ("0.1", r"did you mean rho=0\.1\?"),
        ("none", r"accepted: optimizer=sgd, optimizer=sam, rho=-, rho=0\.1"),
    ],
)
def test_a_baseline_that_no_run_has_is_refused(text, message):
    groups = pd.DataFrame({"optimizer": ["sgd", "sam"], "rho": [None, 0.1]})
    with pytest.raises(InputError, match=message):
        parse_baseline(text, groups)
    assert parse_baseline("optimizer=sam,rho=0.10", groups) == {"optimizer": "sam", "rho": "0.10"}


def test_the_fit_is_the_mean_over_seeds(tmp_path):
    for seed, (accuracy, memorised) in enumerate(((0.9, 0.5), (1.0, 0.7))):
        lay(tmp_path / str(seed), seed=seed, final={"train/accuracy": accuracy, "train/memorised": memorised})
    report = make_report([tmp_path])
    assert str(measure_fit(report.runs, [0])[0]) == "95.0% (60% of wrong)"
    assert report.table.loc[0, ["fit", "memorised"]].to_list() == ["95.0%", "60.0%"]


def test_a_group_with_mixed_images_has_no_fit_also_in_the_csv(tmp_path):
    mixup = config_of("augment=mixup").to_dict()["augment"]
    low = {"train/accuracy": 0.4, "train/accuracy_clean": 0.5, "train/memorised": 0.1}
    for seed in range(2):
        lay(tmp_path / f"plain-{seed}", seed=seed, final=low)
        lay(tmp_path / f"mixed-{seed}", seed=seed, final=low, augment=mixup)
    report = make_report([tmp_path])
    fits = [str(measure_fit(report.runs, [0, 1])[group]) for group in (0, 1)]
    assert sorted(fits) == ["-", "40.0% (50% of right, 10% of wrong)"]
    table = pd.read_csv(io.StringIO(report.to_table_csv())).set_index("augment.mixup")["train/memorised"]
    assert np.isnan(table[1.0]) and table[table.index.isna()].to_list() == [0.1]


@pytest.mark.parametrize(
    ("accuracy", "right", "memorised", "is_low", "text"),
    [
        (0.99, None, None, False, "99.0%"),
        (0.9, None, None, True, "90.0%"),
        (0.6, 0.97, 0.05, True, "60.0% (97% of right, 5% of wrong)"),
        (0.9, 0.98, 0.8, False, "90.0% (98% of right, 80% of wrong)"),
        (None, None, None, False, "-"),
    ],
)
def test_a_network_has_fitted_its_labels_and_the_wrong_ones_where_there_are_any(
    accuracy, right, memorised, is_low, text
):
    fit = Fit(*(float("nan") if value is None else value for value in (accuracy, right, memorised)))
    assert fit.is_low == is_low
    assert str(fit) == text


def lay_radii(folder, *, sgd=True):
    """SAM with two radii and SGD, two seeds each."""
    arms = [("sam", 0.1), ("sam", 0.2), *([("sgd", 0.0)] if sgd else [])]
    for (optimizer, rho), seed in itertools.product(arms, range(2)):
        lay(folder / f"{optimizer}{rho}{seed}", optimizer=optimizer, rho=rho, seed=seed, accuracy=0.5 + rho + seed / 10)
    return folder


def test_a_baseline_that_matches_several_groups_is_refused_with_the_candidates(tmp_path):
    folder = lay_radii(tmp_path / "runs")
    with pytest.raises(InputError) as caught:
        make_report([folder], baseline="optimizer=sam")
    assert str(caught.value) == (
        "--baseline optimizer=sam matches several groups\n  accepted: optimizer=sam,rho=0.1; optimizer=sam,rho=0.2"
    )
    report = make_report([folder], baseline="optimizer=sam,rho=0.2")
    sgd = next(group for group, label in report.labels.items() if label == "sgd")
    assert report.differences[sgd][1].mean == pytest.approx(-0.2)


def test_a_default_baseline_that_is_not_one_group_is_said_and_stops_no_report(tmp_path):
    lay_radii(tmp_path)
    for seed in range(2):
        lay(tmp_path / f"zero{seed}", rho=0.0, seed=seed)  # reports name SAM with rho=0 sgd
    report = make_report([tmp_path])
    assert report.baseline is None
    (remark,) = [text for text in report.remarks if "baseline" in text]
    assert remark == (
        "No baseline: --baseline optimizer=sgd matches several groups, "
        "accepted: optimizer=sgd,rho=-; optimizer=sgd,rho=0."
    )
    assert len(make_report([tmp_path], baseline="optimizer=sgd,rho=-").differences) == 3


def test_the_comparison_at_equal_cost_has_files_of_its_own(tmp_path):
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, result={"gradient_evaluations": 10})
    assert write_report(make_report([tmp_path]), tmp_path, "x") == tmp_path / "report.html"
    before = {path: path.read_bytes() for path in tmp_path.glob("report*")}
    assert write_report(make_report([tmp_path], against="cost"), tmp_path, "x") == tmp_path / "report-cost.html"
    assert {path: path.read_bytes() for path in before} == before
    added = {path.name for path in tmp_path.glob("report*")} - {path.name for path in before}
    assert {"report-cost.csv", "report-cost.tex", "report-cost-differences.svg"} <= added
    assert all(name.startswith("report-cost") for name in added)
    assert "<h1>x at equal gradient evaluations</h1>" in (tmp_path / "report-cost.html").read_text()


@pytest.mark.parametrize(
    ("gain", "meaning"), [(0.0, "expect no effect"), (0.2, "the difference may only show which side learns faster")]
)
def test_a_report_says_what_a_difference_means_where_neither_side_has_fitted(gain, meaning, tmp_path):
    for optimizer, fit in (("sgd", 0.7), ("sam", 0.6)):
        for seed in range(2):
            lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, final={"train/accuracy": fit},
                accuracy=0.5 + seed / 10 + (gain + seed / 1000 if optimizer == "sam" else 0))  # fmt: skip
    sentence = f"Neither side has fitted its training labels (60.0%; 70.0%): {meaning}"
    assert sentence in make_report([tmp_path]).to_text()
