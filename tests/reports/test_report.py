"""Reports of runs that lie on the disk: means, intervals, what is missing, and what a browser makes of the page."""

import itertools
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy import stats

from sam_runner.commands import report as report_command
from sam_runner.reports.report import _against_rho, as_csv, as_html, as_markdown, as_text, plots, report_of
from sam_runner.reports.results import groups, interval, records, student_t
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of, invoke
from tests.run_folders import lay, leave

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "rho"
    draws = np.random.default_rng(0)
    accuracies = {}
    for optimizer, radii in (("sgd", [0.05]), ("sam", [0.02, 0.05, 0.1])):
        for rho in radii:
            for seed in range(3):
                value = float(draws.uniform(0.8, 0.9)) + (0.05 if rho == 0.1 else 0)
                accuracies.setdefault((optimizer, rho if optimizer == "sam" else None), []).append(value)
                lay(folder / f"{optimizer}-{rho}-{seed}", optimizer=optimizer, rho=rho, seed=seed, accuracy=value)
    lay(folder / "failed", rho=0.2, status="failed", error="ValueError: boom\nmore")
    return folder, accuracies


@pytest.mark.parametrize("freedom", [1, 2, 3, 10, 100])
def test_quantiles_of_student(freedom):
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


def test_the_interval_is_that_of_a_t_test():
    values = [0.81, 0.86, 0.9, 0.83]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    middle, half = interval(values)
    assert middle == pytest.approx(np.mean(values))
    assert (middle - half, middle + half) == pytest.approx((low, high))
    assert np.isnan(interval([0.5])[1])


def test_runs_are_grouped_by_all_but_the_seed(sweep):
    folder, accuracies = sweep
    found = groups(records([folder]))
    assert [(group.settings["optimizer"], group.settings["rho"]) for group in found] == list(accuracies)
    for group in found:
        key = group.settings["optimizer"], group.settings["rho"]
        assert group.values("test/accuracy") == accuracies[key]
        assert [run.seed for run in group.runs] == [0, 1, 2]
        assert set(group.settings) == {"optimizer", "rho"}


def test_what_differs_is_a_column_and_what_does_not_is_none(tmp_path):
    for seed in (0, 1):
        for size in (16, 32):
            lay(tmp_path / f"{seed}-{size}", seed=seed, batch_size=size, run_dir=f"r{seed}{size}", device="cpu")
    found = groups(records([tmp_path]))
    assert [dict(group.settings) for group in found] == [{"batch_size": 16}, {"batch_size": 32}]


def test_the_table_has_the_numbers(sweep):
    folder, accuracies = sweep
    columns, rows = report_of([folder]).table()
    assert columns == ["optimizer", "rho", "test/accuracy", "95% interval", "n", "seeds"]
    for row, ((optimizer, rho), values) in zip(rows, accuracies.items(), strict=True):
        middle, half = interval(values)
        assert row[:2] == [optimizer, "-" if rho is None else f"{rho:g}"]
        assert row[2].rstrip("*") == f"{middle:.4f}"
        assert row[3:] == [f"± {half:.4f}", "3", "0 1 2"]
    assert [row[2].endswith("*") for row in rows] == [False, False, False, True]


def test_lower_is_better_for_a_loss(sweep):
    report = report_of([sweep[0]], "test/nll")
    assert report.best.settings["rho"] == 0.1


def test_a_held_out_set_decides_where_there_is_one(tmp_path):
    for rho, validation, test in ((0.02, 0.9, 0.7), (0.1, 0.8, 0.95)):
        folder = lay(tmp_path / str(rho), rho=rho, accuracy=test)
        result = json.loads((folder / "result.json").read_text())
        result["final"]["validation/accuracy"] = validation
        (folder / "result.json").write_text(json.dumps(result))
    report = report_of([tmp_path])
    assert report.best.settings["rho"] == 0.02
    assert "best by validation/accuracy" in as_text(report)


def test_failed_runs_are_listed_with_their_first_line(sweep):
    for text in (as_text(report_of([sweep[0]])), as_markdown(report_of([sweep[0]]))):
        assert "failed: failed: ValueError: boom" in text
        assert "more" not in text


def test_csv_has_a_row_a_run_in_full(sweep):
    lines = as_csv(report_of([sweep[0]])).splitlines()
    assert lines[0] == "optimizer,rho,seed,status,test/accuracy,test/nll,folder"
    assert len(lines) == 14
    cells = next(line for line in lines if line.endswith("sam-0.1-2")).split(",")
    assert float(cells[4]) == sweep[1]["sam", 0.1][2]


def test_a_column_of_csv_is_there_once(tmp_path):
    for rho in (0.05, 0.1):
        leave(tmp_path / str(rho), config_of("optimizer=sam", f"rho={rho}"), accuracy=0.5, **{"rho": rho, "lr": 0.0})
    assert as_csv(report_of([tmp_path])).splitlines()[0] == "rho,seed,status,lr,test/accuracy,test/nll,folder"


def test_the_plots_are_pictures(sweep):
    made = dict(plots(report_of([sweep[0]])))
    assert list(made) == ["rho", "curves", "gap"]
    assert all(picture.startswith(PNG) and len(picture) > 5000 for picture in made.values())


@pytest.mark.parametrize(("radii", "sizes", "span"), [(5, 1, 50), (20, 1, 50), (24, 8, 50), (30, 30, 50), (20, 1, 1e5)])
def test_labels_hide_neither_each_other_nor_lines(radii, sizes, span, tmp_path):
    for number in range(radii):
        rho = 0.5 / span * span ** (number / (radii - 1))
        lay(tmp_path / str(number), rho=rho, accuracy=0.5 + number / 100, batch_size=100 + number % sizes)
    lay(tmp_path / "sgd", optimizer="sgd", batch_size=100)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    _against_rho(axes, report_of([tmp_path]))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 4
    assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert 0 <= legend.get_window_extent().x1 <= figure.bbox.width
    assert len(legend.get_texts()) == (sizes if sizes < 30 else 1) + 1
    plt.close(figure)


def test_labels_of_two_teachers_are_two_groups_and_those_of_each_seeds_own_teacher_one(tmp_path):
    for seed in (0, 1, 10):
        for teacher in ("sgd", "sam"):
            noise = {"_target_": "sam_runner.data.noise.relabelled", "file": f"0.1/{teacher}-seed{seed}/labels.npy"}
            lay(tmp_path / f"{teacher}{seed}", seed=seed, noise=noise)
    found = groups(records([tmp_path]))
    assert [(group.settings, len(group.runs)) for group in found] == [
        ({"noise.file": f"0.1/{teacher}-seed*/labels.npy"}, 3) for teacher in ("sam", "sgd")
    ]


def test_a_group_is_named_by_its_option(tmp_path):
    for name in ("one", "two"):
        lay(tmp_path / name, model={"_target_": f"sam_runner.models.{name}"})
    report = report_of([tmp_path])
    assert report.table()[0][0] == "model"
    assert [row[0] for row in report.table()[1]] == ["one", "two"]
    assert [group.name for group in report.groups] == ["model one", "model two"]
    assert as_csv(report).startswith("model._target_,")
    assert "sam_runner.models.two" in as_csv(report)


def test_the_page_needs_nothing_from_outside_and_escapes(tmp_path):
    lay(tmp_path / "a<b>", accuracy=0.5)
    lay(tmp_path / "c", seed=1, status="failed", error="<script>alert(1)</script>")
    report = report_of([tmp_path])
    page = as_html(report, "<x>", list(plots(report)))
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<title>&lt;x&gt;</title>" in page


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(sweep, tmp_path, monkeypatch, capsys):
    assert shutil.which("chromium"), "install a browser: Debian's package chromium"
    assert (
        invoke(monkeypatch, capsys, tmp_path, sweep[0], f"out={tmp_path}/out", entry=report_command.main).returncode
        == 0
    )
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/out/report.html"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<img") == 3
    assert "± " in done.stdout


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_ten_seconds(tmp_path, monkeypatch, capsys):
    for rho in range(1, 101):
        for seed in range(10):
            lay(tmp_path / "many" / f"{rho}-{seed}", rho=rho / 1000, seed=seed, accuracy=0.5 + rho / 1000)
    started = time.process_time()  # a machine may have other work
    done = invoke(monkeypatch, capsys, tmp_path, "many", entry=report_command.main)
    seconds = time.process_time() - started
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1 + 100 + 1 + 1
    assert seconds < 10


def test_a_seed_counts_once_and_a_group_without_the_metric_is_left_out(tmp_path):
    lay(tmp_path / "a", seed=1)
    lay(tmp_path / "b", seed=1)
    assert [len(group.runs) for group in groups(records([tmp_path]))] == [1]
    for rho in (0.1, 0.2):
        result = json.loads((lay(tmp_path / str(rho), rho=rho) / "result.json").read_text())
        result["final"]["validation/accuracy"] = 0.5
        (tmp_path / str(rho) / "result.json").write_text(json.dumps(result))
    report = report_of([tmp_path], "validation/accuracy")
    assert dict(plots(report))["rho"].startswith(PNG)


def test_two_folders_and_one_twice_count_each_run_once(sweep, tmp_path):
    lay(tmp_path / "other", rho=0.3)
    assert len(records([sweep[0], tmp_path, sweep[0]])) == 14


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no runs in ."),
        (["SWEEP", "metric=test/acuracy"], "they have: test/accuracy, test/nll"),
        (["SWEEP", "metrc=x"], "did you mean metric?"),
        (["metric=test/nll"], "sam-report FOLDER"),
    ],
)
def test_bad_input_is_refused(arguments, named, sweep, tmp_path, monkeypatch, capsys):
    words = [str(sweep[0]) if word == "SWEEP" else word for word in arguments]
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=report_command.main)
    assert done.returncode == 2
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a: &a [1]\nb: *a\n", "- 1\n", "a: [\n"])
def test_a_damaged_configuration_is_named(text, tmp_path):
    folder = lay(tmp_path / "run")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(Path("run") / "config.yaml"))):
        records([tmp_path])


def test_a_sweep_ends_with_its_table_and_the_same_again_only_prints_it(tmp_path, monkeypatch, capsys):
    words = ["-m", *TINY, "optimizer=sgd,sam", "rho=0.05,0.1", "max_steps=1", "sweep_name=rho"]
    first = invoke(monkeypatch, capsys, tmp_path, *words)
    assert first.returncode == 0, first.stderr
    table = first.stdout[first.stdout.index("\noptimizer  rho") :]
    assert [line.split()[0] for line in table.splitlines()[2:5]] == ["sgd", "sam", "sam"]
    page = tmp_path / "outputs" / "sweeps" / "rho" / "report.html"
    assert page.read_text().count("<img") == 3
    again = invoke(monkeypatch, capsys, tmp_path, *words)
    assert again.returncode == 0
    assert again.stdout.count("already finished") == 4
    assert again.stdout.endswith(table)
    alone = invoke(monkeypatch, capsys, tmp_path, "outputs/sweeps/rho", entry=report_command.main)
    assert alone.stdout in again.stdout


def test_a_dry_run_of_a_sweep_writes_no_report(tmp_path, monkeypatch, capsys):
    lay(tmp_path / "outputs" / "sweeps" / "rho" / "a")
    before = sorted(tmp_path.rglob("*"))
    done = invoke(
        monkeypatch, capsys, tmp_path, "-m", *TINY, "optimizer=sam", "rho=0.1,0.2", "sweep_name=rho", "dry_run=true"
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


def test_a_failing_cell_is_in_the_report_and_stops_nobody(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "optimizer=sam", "rho=0.05,-1,0.1", "epochs=1",
                  "sweep_name=rho")  # fmt: skip
    assert done.returncode == 1
    assert "error: refused: " in done.stderr
    assert "rho=-1.0 is out of range" in done.stderr.splitlines()[-1]
    assert len([line for line in done.stdout.splitlines() if re.match(r"0\.(05|1) ", line)]) == 2
