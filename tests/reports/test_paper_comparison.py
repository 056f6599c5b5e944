"""Comparison of runs with the paper's numbers."""

import numpy as np
import pytest
from scipy import stats

from sam_runner.commands import report as report_command
from sam_runner.paper.rows import load_rows, load_tables
from sam_runner.reports.paper_comparison import compare_with_paper, describe_differences
from sam_runner.reports.results import read_runs
from sam_runner.utils.errors import InputError
from tests.helpers import config_of, invoke
from tests.run_folders import leave

NOISE = ("experiment=label_noise", "data.root=x", "noise.rate=0.4")
ACCURACIES = {"sam": [0.81, 0.86, 0.9], "sgd": [0.5, 0.55]}


def leave_run(folder, *words, seed, accuracy, status="finished", **final):
    """Write a run of the settings that the command line would compose."""
    return leave(folder, config_of(*words, f"seed={seed}"), accuracy=accuracy, status=status, **final)


def settings_of(folder):
    return read_runs([folder])[0].settings


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    for optimizer, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            words = (*NOISE, "epochs=40", f"optimizer={optimizer}")
            leave_run(folder / f"{optimizer}-{seed}", *words, seed=seed, accuracy=accuracy)
    return folder


def line(comparison, row, optimizer):
    (found,) = [line for line in lines_of(comparison) if line[:2] == [row, optimizer]]
    return found


def lines_of(comparison):
    return comparison.table.to_numpy().tolist()


def test_a_row_has_the_papers_number_and_ours(noisy):
    found = line(compare_with_paper([noisy], "table4"), "table4-0.4-basic", "sam")
    low, high = stats.ttest_1samp(np.array(ACCURACIES["sam"]) * 100, 0).confidence_interval(0.95)
    assert found[2:] == [
        "93.4", f"{np.mean(ACCURACIES['sam']) * 100:.2f}", f"± {(high - low) / 2:.2f}", "3",
        "epochs 40 (200)",
    ]  # fmt: skip
    assert line(compare_with_paper([noisy], "table4"), "table4-0.4-basic", "sgd")[2:4] == ["68.8", "52.50"]


def test_rows_without_a_run_are_listed(noisy):
    found = compare_with_paper([noisy], "table4")
    assert line(found, "table4-0.2-basic", "sam")[2:] == ["95.1", "-", "-", "0", ""]
    assert {(row, optimizer) for row, optimizer, *_ in lines_of(found)} == {
        (row.name, optimizer) for row in load_tables()["table4"] for optimizer in row.optimizers
    }


def test_runs_that_do_not_count_are_named(tmp_path):
    words = (*NOISE, "epochs=40", "optimizer=sam")
    leave_run(tmp_path / "a", *words, seed=0, accuracy=0.8)
    leave_run(tmp_path / "b", *words, seed=1, accuracy=0.8, status="failed", error="boom\nmore")
    leave_run(tmp_path / "c", *words, seed=2, accuracy=0.8)
    (tmp_path / "c" / "config.yaml").write_text("epochs: [")
    found = compare_with_paper([tmp_path], "table4")
    assert line(found, "table4-0.4-basic", "sam")[5] == "1"
    failed, unreadable = found.unfinished
    assert failed == f"failed: {tmp_path / 'b'}: boom" and unreadable.startswith(f"unreadable: {tmp_path / 'c'}: ")
    assert all(part in text for part in ("b: boom", "unreadable: ") for text in (found.to_text(), found.to_markdown()))


def test_an_error_is_one_minus_the_accuracy(tmp_path):
    words = ("experiment=fashion_wrn28_10", "data.root=x", "augment=cutout", "optimizer=sgd")
    leave_run(tmp_path / "run", *words, seed=0, accuracy=0.9612)
    found = line(compare_with_paper([tmp_path], "table5"), "table5.fashion_wrn28_10-cutout", "sgd")
    assert found[2:] == ["3.86", "3.88", "-", "1", ""]


def test_the_top5_error_is_beside_the_top1_error(tmp_path):
    words = ("experiment=imagenet_resnet50", "data.root=x", "epochs=100", "optimizer=sam")
    for seed, top5 in enumerate((0.93, 0.95)):
        leave_run(tmp_path / str(seed), *words, seed=seed, accuracy=0.75, **{"test/accuracy_top5": top5})
    found = line(compare_with_paper([tmp_path], "table2"), "table2.resnet50-100", "sam")
    assert found[2:4] == ["22.5±0.1 / 6.28±0.08", "25.00 / 6.00"]


def test_runs_of_other_settings_have_a_line_each(tmp_path):
    for epochs in (40, 50):
        words = (*NOISE, f"epochs={epochs}", "optimizer=sam")
        leave_run(tmp_path / str(epochs), *words, seed=0, accuracy=0.8)
    lines = [line for line in lines_of(compare_with_paper([tmp_path], "table4")) if line[3] != "-"]
    assert [entry[6].rpartition("; ")[2] for entry in lines] == ["epochs 40 (200)", "epochs 50 (200)"]


def test_a_run_that_matches_no_row_is_listed(tmp_path):
    leave_run(tmp_path / "odd", *NOISE[:-1], "noise.rate=0.35", "optimizer=sam", seed=0, accuracy=0.8)
    assert compare_with_paper([tmp_path], "table4").unmatched == [str(tmp_path / "odd")]


def test_unfinished_runs_are_not_averaged(tmp_path):
    leave_run(tmp_path / "run", *NOISE, "optimizer=sam", seed=0, accuracy=0.8, status="failed")
    assert line(compare_with_paper([tmp_path], "table4"), "table4-0.4-basic", "sam")[3:] == [
        "-",
        "-",
        "0",
        "1 not finished",
    ]


def test_the_key_paper_assigns_a_run_to_a_row_whatever_its_settings(tmp_path):
    words = ("data=digits", "optimizer=sam", "paper=table4-0.8-basic")
    leave_run(tmp_path / "run", *words, seed=0, accuracy=0.8)
    assert line(compare_with_paper([tmp_path], "table4"), "table4-0.8-basic", "sam")[2:4] == ["77.9", "80.00"]


def test_another_target_is_listed_without_its_arguments(tmp_path):
    words = ("experiment=label_noise", "data=digits", "model=small_cnn", "augment=basic", "noise.rate=0.8")
    run = leave_run(tmp_path / "run", *words, "optimizer=sam", "weight_decay=0.001", seed=0, accuracy=0.8)
    (row,) = [row for row in load_rows() if row.name == "table4-0.8-basic"]
    assert describe_differences(row, "sam", settings_of(run)) == [
        "data digits (cifar10)", "model SmallCNN (ResNetMentorMix)", "rho 0.1 (0.05)", "weight_decay 0.001 (0.0005)",
    ]  # fmt: skip


def test_the_command_of_a_row_has_no_differences(tmp_path):
    for number, row in enumerate(row for row in load_rows() if row.paper == "table4" or row.paper.startswith("c")):
        optimizer = row.optimizers[-1]
        run = leave_run(tmp_path / str(number), *row.command(optimizer), "data.root=x", seed=3, accuracy=0.5)
        assert describe_differences(row, optimizer, settings_of(run)) == []
        assert row.matches(read_runs([run])[0].config)


def test_names_of_rows_are_unique():
    names = [row.name for row in load_rows()]
    assert len(set(names)) == len(names)
    assert {row.teacher for row in load_rows()} - {""} < set(names)


def test_the_command_prints_and_writes_the_comparison(noisy, tmp_path, monkeypatch, capsys):
    done = invoke(
        monkeypatch, capsys, tmp_path, "--paper", "table4", noisy, "--out", tmp_path, entry=report_command.main
    )
    assert done.returncode == 0, done.stderr
    assert "85.67" in done.stdout
    assert "| table4-0.4-basic | sam | 93.4 | 85.67 | ± 11.20 | 3 |" in (tmp_path / "paper-table4.md").read_text()


def test_a_metric_beside_a_table_is_refused(noisy, tmp_path, monkeypatch, capsys):
    done = invoke(
        monkeypatch, capsys, tmp_path, "--paper=table4", "--metric", "test/nll", noisy, entry=report_command.main
    )
    assert done.returncode == 2
    assert "--metric has no effect with --paper" in done.stderr


@pytest.mark.parametrize(
    ("table", "message"), [("table9", "accepted: table1"), ("table2", "no run in .* belongs to table2")]
)
def test_an_unknown_table_and_a_table_without_runs_are_refused(table, message, noisy):
    with pytest.raises(InputError, match=message):
        compare_with_paper([noisy], table)
