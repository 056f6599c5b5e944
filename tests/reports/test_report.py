"""Reports of runs: table, plots, the page in a browser, and the commands that write them."""

import itertools
import json
import re
import shutil
import subprocess
import time

import pytest
from matplotlib import pyplot as plt
from scipy import stats

from sam_runner.commands import report as report_command
from sam_runner.reports.page import render_page
from sam_runner.reports.plots import draw_plots, plot_against_rho
from sam_runner.reports.report import make_report
from tests.helpers import TINY, invoke
from tests.run_folders import lay

PNG = b"\x89PNG\r\n\x1a\n"


def add_metrics(folder, **metrics):
    result = json.loads((folder / "result.json").read_text())
    result["final"] |= {tag.replace("_", "/", 1): value for tag, value in metrics.items()}
    (folder / "result.json").write_text(json.dumps(result))


def test_the_table_has_the_numbers(sweep):
    folder, accuracies = sweep
    table = make_report([folder]).table
    assert list(table.columns) == ["optimizer", "rho", "test/accuracy", "95% interval", "n", "seeds"]
    for row, ((optimizer, rho), values) in zip(table.to_numpy().tolist(), accuracies.items(), strict=True):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[:2] == [optimizer, "-" if rho is None else f"{rho:g}"]
        assert row[2].rstrip("*") == f"{sum(values) / 3:.4f}"
        assert row[3:] == [f"± {(high - low) / 2:.4f}", "3", "0 1 2"]
    assert [text.endswith("*") for text in table["test/accuracy"]] == [False, False, False, True]


def test_lower_is_better_for_a_loss(sweep):
    report = make_report([sweep[0]], "test/nll")
    assert report.groups.loc[report.best, "rho"] == 0.1


def test_validation_accuracy_selects_the_best_where_all_runs_have_it(tmp_path):
    for rho, validation, test in ((0.02, 0.9, 0.7), (0.1, 0.8, 0.95)):
        add_metrics(lay(tmp_path / str(rho), rho=rho, accuracy=test), validation_accuracy=validation)
    report = make_report([tmp_path])
    assert report.groups.loc[report.best, "rho"] == 0.02
    assert "* Best by validation/accuracy." in report.to_text()
    assert "optimistic" not in report.to_text()
    lay(tmp_path / "none", rho=0.3)
    assert "Selected on the test set, so optimistic." in make_report([tmp_path]).to_text()


def test_failed_runs_are_listed_with_the_first_line_of_their_error(sweep):
    report = make_report([sweep[0]])
    for text in (report.to_text(), report.to_markdown()):
        assert "failed: failed: ValueError: boom" in text
        assert "more" not in text


def test_a_sweep_of_failures_only_is_reported(tmp_path):
    lay(tmp_path / "a", status="failed", error="ValueError: boom")
    report = make_report([tmp_path])
    assert report.to_text() == "failed: a: ValueError: boom"
    assert "<table" not in render_page(report, "x", [])
    assert report.to_csv().splitlines()[0] == "seed,status,folder"


def test_csv_has_all_digits_of_each_run(sweep):
    lines = make_report([sweep[0]]).to_csv().splitlines()
    assert lines[0] == "optimizer,rho,seed,status,test/accuracy,test/nll,folder"
    assert len(lines) == 14
    cells = next(line for line in lines if line.endswith("sam-0.1-2")).split(",")
    assert float(cells[4]) == sweep[1]["sam", 0.1][2]


def test_the_plots_are_pictures(sweep):
    plots = draw_plots(make_report([sweep[0]]))
    assert [plot.name for plot in plots] == ["rho", "curves", "gap"]
    assert all(plot.png.startswith(PNG) and len(plot.png) > 5000 for plot in plots)


def test_a_group_without_the_metric_is_not_plotted(tmp_path):
    lay(tmp_path / "without", rho=0.3)
    for rho in (0.1, 0.2):
        add_metrics(lay(tmp_path / str(rho), rho=rho), validation_accuracy=0.5)
    report = make_report([tmp_path], "validation/accuracy")
    assert list(report.table["validation/accuracy"]) == ["0.5000*", "0.5000", "-"]
    assert draw_plots(report)[0].name == "rho"


@pytest.mark.parametrize(("radii", "sizes", "span"), [(5, 1, 50), (20, 1, 50), (24, 8, 50), (30, 30, 50), (20, 1, 1e5)])
def test_labels_hide_neither_each_other_nor_lines(radii, sizes, span, tmp_path):
    for number in range(radii):
        rho = 0.5 / span * span ** (number / (radii - 1))
        lay(tmp_path / str(number), rho=rho, accuracy=0.5 + number / 100, batch_size=100 + number % sizes)
    lay(tmp_path / "sgd", optimizer="sgd", batch_size=100)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    plot_against_rho(axes, make_report([tmp_path]))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 4
    assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert 0 <= legend.get_window_extent().x1 <= figure.bbox.width
    assert len(legend.get_texts()) == (sizes if sizes < 30 else 1) + 1
    plt.close(figure)


def test_an_option_is_named_by_its_target(tmp_path):
    for name in ("resnet18", "resnet34"):
        lay(tmp_path / name, model={"_target_": f"torchvision.models.{name}"})
    report = make_report([tmp_path])
    assert list(report.table["model"]) == ["resnet18", "resnet34"]
    assert report.to_csv().startswith("model._target_,")
    assert "torchvision.models.resnet34" in report.to_csv()


def test_the_page_loads_nothing_from_elsewhere_and_escapes(tmp_path):
    lay(tmp_path / "a<b>", accuracy=0.5)
    lay(tmp_path / "c", seed=1, status="failed", error="<script>alert(1)</script>")
    report = make_report([tmp_path])
    page = render_page(report, '<x>"', draw_plots(report))
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<title>&lt;x&gt;&#34;</title>" in page


def test_hostile_settings_are_escaped_in_the_table(tmp_path):
    for number, name in enumerate(("<img src=x onerror=alert(1)>", "b")):
        noise = {"_target_": "sam_runner.data.noise.relabelled", "file": name}
        lay(tmp_path / str(number), noise=noise)
    page = render_page(make_report([tmp_path]), "x", [])
    assert "<img" not in page
    assert "&lt;img src=x" in page


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(sweep, tmp_path, monkeypatch, capsys):
    assert shutil.which("chromium"), "install a browser: Debian's package chromium"
    done = invoke(monkeypatch, capsys, tmp_path, sweep[0], "--out", tmp_path / "out", entry=report_command.main)
    assert done.returncode == 0
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path}/profile", "--dump-dom",
         f"file://{tmp_path}/out/report.html"],
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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no runs in ."),
        (["SWEEP", "--metric", "test/acuracy"], "accepted: test/accuracy, test/nll"),
        (["SWEEP", "--metrc=x"], "did you mean --metric?"),
        (["--metric", "test/nll"], "usage: sam-report"),
    ],
)
def test_bad_input_is_refused(arguments, named, sweep, tmp_path, monkeypatch, capsys):
    words = [str(sweep[0]) if word == "SWEEP" else word for word in arguments]
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=report_command.main)
    assert done.returncode == 2
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


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
    assert again.stdout.count("already finished") == 3
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


def test_a_refused_job_is_in_the_report_and_stops_no_other(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "optimizer=sam", "rho=0.05,-1,0.1", "epochs=1",
                  "sweep_name=rho")  # fmt: skip
    assert done.returncode == 1
    assert "error: refused: " in done.stderr
    assert "rho=-1.0 is out of range" in done.stderr.splitlines()[-1]
    assert len([line for line in done.stdout.splitlines() if re.match(r"0\.(05|1) ", line)]) == 2
