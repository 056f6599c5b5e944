"""Runs beside the paper's numbers."""

import numpy as np
import pytest
from scipy import stats

from sam_runner.commands import report as report_command
from sam_runner.paper.rows import rows, tables
from sam_runner.reports.paper_comparison import compared, differences
from sam_runner.reports.results import records
from sam_runner.utils.errors import InputError
from tests.helpers import config_of, invoke
from tests.run_folders import leave

NOISE = ("experiment=label_noise", "data.root=x", "noise.rate=0.4")
ACCURACIES = {"sam": [0.81, 0.86, 0.9], "sgd": [0.5, 0.55]}


def lay_of(folder, *words, seed, accuracy, status="finished", **final):
    """A run of the settings that the command line would compose."""
    return leave(folder, config_of(*words, f"seed={seed}"), accuracy=accuracy, status=status, **final)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for optimizer, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            words = (*NOISE, "epochs=40", f"optimizer={optimizer}")
            lay_of(folder / f"{optimizer}-{seed}", *words, seed=seed, accuracy=accuracy)
    return folder


def line(comparison, row, optimizer):
    (found,) = [line for line in comparison.lines if line[:2] == [row, optimizer]]
    return found


def test_a_row_has_the_papers_number_and_ours(noisy):
    found = line(compared([noisy], "table4"), "table4-0.4-basic", "sam")
    low, high = stats.ttest_1samp(np.array(ACCURACIES["sam"]) * 100, 0).confidence_interval(0.95)
    assert found[2:] == [
        "93.4", f"{np.mean(ACCURACIES['sam']) * 100:.2f}", f"± {(high - low) / 2:.2f}", "3",
        "epochs 40 (200)",
    ]  # fmt: skip
    assert line(compared([noisy], "table4"), "table4-0.4-basic", "sgd")[2:4] == ["68.8", "52.50"]


def test_rows_that_were_not_run_are_told(noisy):
    found = compared([noisy], "table4")
    assert line(found, "table4-0.2-basic", "sam")[2:] == ["95.1", "-", "-", "0", ""]
    assert {(row, optimizer) for row, optimizer, *_ in found.lines} == {
        (row.name, optimizer) for row in tables()["table4"] for optimizer in row.optimizers
    }


def test_an_error_is_what_the_accuracy_leaves(tmp_path):
    words = ("experiment=fashion_wrn28_10", "data.root=x", "augment=cutout", "optimizer=sgd")
    lay_of(tmp_path / "run", *words, seed=0, accuracy=0.9612)
    found = line(compared([tmp_path], "table5"), "table5.fashion_wrn28_10-cutout", "sgd")
    assert found[2:] == ["3.86", "3.88", "-", "1", ""]


def test_the_top5_error_is_beside_the_top1_error(tmp_path):
    words = ("experiment=imagenet_resnet50", "data.root=x", "epochs=100", "optimizer=sam")
    for seed, top5 in enumerate((0.93, 0.95)):
        lay_of(tmp_path / str(seed), *words, seed=seed, accuracy=0.75, **{"test/accuracy_top5": top5})
    found = line(compared([tmp_path], "table2"), "table2.resnet50-100", "sam")
    assert found[2:4] == ["22.5±0.1 / 6.28±0.08", "25.00 / 6.00"]


def test_runs_of_other_settings_have_a_line_each(tmp_path):
    for epochs in (40, 50):
        words = (*NOISE, f"epochs={epochs}", "optimizer=sam")
        lay_of(tmp_path / str(epochs), *words, seed=0, accuracy=0.8)
    lines = [line for line in compared([tmp_path], "table4").lines if line[3] != "-"]
    assert [entry[6].rpartition("; ")[2] for entry in lines] == ["epochs 40 (200)", "epochs 50 (200)"]


def test_a_run_of_the_table_but_of_none_of_its_rows_is_told(tmp_path):
    lay_of(tmp_path / "odd", *NOISE[:-1], "noise.rate=0.35", "optimizer=sam", seed=0, accuracy=0.8)
    assert compared([tmp_path], "table4").strangers == [str(tmp_path / "odd")]


def test_unfinished_runs_count_for_nothing(tmp_path):
    lay_of(tmp_path / "run", *NOISE, "optimizer=sam", seed=0, accuracy=0.8, status="failed")
    assert line(compared([tmp_path], "table4"), "table4-0.4-basic", "sam")[3:] == ["-", "-", "0", "1 not finished"]


def test_a_run_says_which_row_it_is_of_whatever_else_it_has(tmp_path):
    words = ("data=digits", "optimizer=sam", "paper=table4-0.8-basic")
    lay_of(tmp_path / "run", *words, seed=0, accuracy=0.8)
    assert line(compared([tmp_path], "table4"), "table4-0.8-basic", "sam")[2:4] == ["77.9", "80.00"]


def test_what_differs_is_told_once(tmp_path):
    words = ("experiment=label_noise", "data=digits", "model=small_cnn", "augment=basic", "noise.rate=0.8")
    run = lay_of(tmp_path / "run", *words, "optimizer=sam", "weight_decay=0.001", seed=0, accuracy=0.8)
    (row,) = [row for row in rows() if row.name == "table4-0.8-basic"]
    assert differences(row, "sam", records([run])[0].settings) == [
        "data digits (cifar10)", "model SmallCNN (ResNetMentorMix)", "rho 0.1 (0.05)", "weight_decay 0.001 (0.0005)",
    ]  # fmt: skip


def test_a_row_by_itself_differs_in_nothing(tmp_path):
    for number, row in enumerate(row for row in rows() if row.paper == "table4" or row.paper.startswith("c")):
        optimizer = row.optimizers[-1]
        typed = [word for word in row.typed.split() if optimizer == "sam"]
        words = [word for word in row.words.split() if not word.startswith("optimizer=")]
        run = lay_of(
            tmp_path / str(number), *words, *typed, f"optimizer={optimizer}", "data.root=x", seed=3, accuracy=0.5
        )
        assert differences(row, optimizer, records([run])[0].settings) == []
        assert row.fits(records([run])[0].typed)


def test_names_of_rows_are_their_own():
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
    assert {row.labels for row in rows()} - {""} < set(names)


def test_the_command_prints_and_writes_it(noisy, tmp_path, monkeypatch, capsys):
    done = invoke(
        monkeypatch, capsys, tmp_path, "--paper", "table4", noisy, f"out={tmp_path}", entry=report_command.main
    )
    assert done.returncode == 0, done.stderr
    assert "85.67" in done.stdout
    assert "| table4-0.4-basic | sam | 93.4 | 85.67 | ± 11.20 | 3 |" in (tmp_path / "paper-table4.md").read_text()


def test_a_metric_beside_a_table_is_refused(noisy, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "--paper=table4", "metric=test/nll", noisy, entry=report_command.main)
    assert done.returncode == 2
    assert "metric has no effect with --paper" in done.stderr


@pytest.mark.parametrize(("table", "message"), [("table9", "accepted: table1"), ("table2", "no run in .* is one of")])
def test_what_there_is_not_is_refused(table, message, noisy):
    with pytest.raises(InputError, match=message):
        compared([noisy], table)
