"""Reports of runs: table, plots, the page in a browser, and the commands that write them."""

import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from scipy import stats

from sam_runner.commands import report as report_command
from sam_runner.reports.output.files import write_report
from sam_runner.reports.output.latex import write_full_tables, write_narrow_table
from sam_runner.reports.output.page import render_page
from sam_runner.reports.output.plots import draw_plots
from sam_runner.reports.report import make_report
from sam_runner.reports.tables import latex_table
from sam_runner.runs.folder import NOT_STARTED
from tests.helpers import TINY, config_of, invoke
from tests.run_folders import lay, leave


def html_of(report, title="x", plots=(), folder=Path()):
    return render_page(report, title, plots, folder)


def add_metrics(folder, **metrics):
    result = json.loads((folder / "result.json").read_text())
    result["final"] |= {tag.replace("_", "/", 1): value for tag, value in metrics.items()}
    (folder / "result.json").write_text(json.dumps(result))


def test_the_table_has_the_numbers(sweep):
    folder, accuracies = sweep
    table = make_report([folder]).table
    assert list(table.columns) == [
        "optimizer", "rho", "test/accuracy", "95% interval", "n", "seeds", "difference to sgd", "contains 0", "p"
    ]  # fmt: skip
    baseline = accuracies["sgd", None]
    for row, ((optimizer, rho), values) in zip(table.to_numpy().tolist(), accuracies.items(), strict=True):
        if optimizer == "sam":
            result = stats.ttest_rel(values, baseline)
            width = result.confidence_interval(0.95).high - result.confidence_interval(0.95).low
            assert row[6] == f"{np.mean(values) - np.mean(baseline):+.4f} ± {width / 2:.4f}"
            assert row[7:] == ["yes" if result.pvalue > 0.05 else "no", f"{result.pvalue:.2g}"]
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[:2] == [optimizer, "-" if rho is None else f"{rho:g}"]
        assert row[2].rstrip("*") == f"{sum(values) / 3:.4f}"
        assert row[3:6] == [f"± {(high - low) / 2:.4f}", "3", "0 1 2"]
    assert [text.endswith("*") for text in table["test/accuracy"]] == [False, False, False, True]


def test_lower_is_better_for_a_loss(sweep):
    report = make_report([sweep[0]], "test/nll")
    assert list(report.groups.loc[list(report.best), "rho"]) == [0.1]


def test_validation_accuracy_selects_the_best_where_all_runs_have_it(tmp_path):
    for rho, validation, test in ((0.02, 0.9, 0.7), (0.1, 0.8, 0.95)):
        add_metrics(lay(tmp_path / str(rho), rho=rho, accuracy=test), validation_accuracy=validation)
    report = make_report([tmp_path])
    assert list(report.groups.loc[list(report.best), "rho"]) == [0.02]
    assert "*: best of 2 by validation/accuracy (mean over seeds)." in report.notes
    assert "optimistic" not in report.to_text()
    lay(tmp_path / "none", rho=0.3)
    assert "Selected on the test set, so optimistic." in make_report([tmp_path]).to_text()


def test_failed_runs_are_listed_with_the_first_line_of_their_error(sweep):
    report = make_report([sweep[0]])
    for text in (report.to_text(), report.to_markdown()):
        assert "failed: failed: ValueError: boom" in text
        assert "second line" not in text


def test_a_sweep_of_failures_only_is_reported(tmp_path):
    lay(tmp_path / "a", status="failed", error="ValueError: boom")
    report = make_report([tmp_path])
    assert report.to_text() == "failed: a: ValueError: boom"
    assert "All settings" not in html_of(report)
    assert report.to_csv().splitlines()[0] == "seed,status,folder"


def test_csv_has_all_digits_of_each_run(sweep):
    lines = make_report([sweep[0]]).to_csv().splitlines()
    assert lines[0] == "optimizer,rho,seed,status,test/accuracy,test/nll,folder"
    assert len(lines) == 14
    cells = next(line for line in lines if line.endswith("sam-0.1-2")).split(",")
    assert float(cells[4]) == sweep[1]["sam", 0.1][2]


def test_an_option_is_named_by_its_target(tmp_path):
    for name in ("resnet18", "resnet34"):
        lay(tmp_path / name, model={"_target_": f"torchvision.models.{name}"})
    report = make_report([tmp_path])
    assert list(report.table["model"]) == ["resnet18", "resnet34"]
    assert report.to_csv().startswith("model._target_,")
    assert "torchvision.models.resnet34" in report.to_csv()


HOSTILE = "<img src=x onerror=alert(1)>|$\\frac{1}[x](javascript:alert(2))`&amp;\n**b**"


def test_the_page_loads_nothing_from_elsewhere_and_escapes(tmp_path, drawn_plots):
    command = ["sam-train", "-m", f"noise.file={HOSTILE}"]
    for number, name in enumerate((HOSTILE, "b")):
        noise = {"_target_": "sam_runner.data.noise.relabelled", "file": name}
        environment = {"command": command, "processor": HOSTILE, "git_commit": f"{number}{HOSTILE}"}
        environment |= {"resolved_precision": f"{HOSTILE}{number}", "packages": {"torch": f"{HOSTILE}{number}"}}
        lay(tmp_path / f"a<b>{number}", rho=0.1 + number, noise=noise, environment=environment)
    lay(tmp_path / "javascript:alert(3)", seed=1, status="failed", error="<script>alert(1)</script>")
    report = make_report([tmp_path])
    page = html_of(report, '<x>"', draw_plots(report), tmp_path)
    assert len(report.setup.warnings) == 3
    assert "http:" not in (own := re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)) and "https:" not in own
    assert not re.search(r"<(script|img|iframe|object|link rel=.stylesheet)", page)
    assert "&lt;script&gt;" in page and "&lt;img src=x" in page
    assert "<title>&lt;x&gt;&#34;</title>" in page
    links = re.findall(r'<a href="([^"]*)"', page)
    assert links == ["./a%3Cb%3E0", "./a%3Cb%3E1", "./javascript%3Aalert%283%29"]
    assert all((tmp_path / unquote(link)).is_dir() for link in links)
    prose = [line for line in report.to_markdown().splitlines() if not line.startswith("sam-train")]
    tables = [
        list(lines) for is_table, lines in itertools.groupby(prose, lambda line: line.startswith("|")) if is_table
    ]
    assert all(len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1 for table in tables)
    assert len(tables) == 2 and not re.search(r"<|(?<!\\)\[|(?<!\\)`(?!``)\w", "\n".join(prose).replace("```", ""))
    for latex in (write_full_tables(report), write_narrow_table(report)):
        assert not re.search(r"(?<!\\)\$\\frac", re.sub(r"^%.*", "", latex, flags=re.M))


def test_bytes_of_a_path_that_are_not_utf8_are_written(tmp_path):
    lay(tmp_path / "na\udcefve")
    report = make_report([tmp_path])
    page = write_report(report, tmp_path, "na\udcefve")
    assert r"na\udcef" in page.read_text()
    assert './na%EFve"' in page.read_text()


def test_the_page_answers_the_questions_of_a_reader(tmp_path):
    command = ["/usr/bin/sam-train", "-m", "optimizer=sgd,sam", "rho=0.1", "seed=0,1", "noise=symmetric"]
    environment = {
        "command": command, "git_commit": "0123456789abcdef", "git_changes": True, "python": "3.11.7", "threads": 2,
        "processor": "Some CPU", "device": "cpu", "packages": {"sam-runner": "0.1.0", "torch": "2.14.1"},
        "resolved_precision": "bf16",
    }  # fmt: skip
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        result = {
            "step": 30, "training_seconds": 40.0 + seed, "gradient_evaluations": 30, "num_parameters": 1234,
            "data": {"train": 1000, "test": 300, "classes": 10, "wrong_labels": 398 + 4 * seed},
        }  # fmt: skip
        noise = {"_target_": "sam_runner.data.noise.symmetric", "rate": 0.4, "include_true_class": False}
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, noise=noise, environment=environment,
            result=result, accuracy={"sgd": 0.7, "sam": 0.9 + seed / 1000}[optimizer])  # fmt: skip
    report = make_report([tmp_path])
    for text in (html_of(report), report.to_markdown()):
        for answer in (
            "digits: 1,000 training, 300 test images, 10 classes",
            "398 to 402 of 1,000 training labels (40.0%) are wrong, no images are held out, test labels are clean",
            "SmallCNN (width 32, batch_norm True, dropout 0): 1,234 parameters",
            "training took 2 min 42 s, summed over runs, 40 s a run (median)",
            "trained on the CPU: Some CPU, 2 threads",
            "bf16 (precision=auto)",
            "sam-runner 0.1.0, torch 2.14.1, Python 3.11.7",
            "commit 0123456789ab with uncommitted changes",
            "4 of 4 runs used source code with uncommitted changes.",
            "it does not contain 0, so sam, rho 0.05 is significantly better",
        ):
            assert answer in text, answer
    page = html_of(report)
    assert "sam-train -m optimizer=sgd,sam rho=0.1 seed=0,1 noise=symmetric" in page
    assert "The same command again runs what is missing, if it names its sweep (sweep_name) or run (run_dir)." in page


def test_a_folder_of_images_is_named(tmp_path):
    leave(tmp_path / "x", config_of("data=image_folder", "data.root=/somewhere/photos"), accuracy=0.5)
    setup = make_report([tmp_path]).setup
    assert dict(setup.facts)["data"].startswith("image_folder photos: ")
    assert " on image_folder photos, " in setup.task


def test_the_set_up_says_which_labels_the_held_out_images_had(tmp_path):
    facts = {"train": 900, "validation": 100, "test": 300, "classes": 10, "wrong_labels": 360}
    for number, labels in enumerate(("noisy", "noisy", "clean")):
        words = ("noise=symmetric", "noise.rate=0.4", "data.val_fraction=0.1", f"data.val_labels={labels}")
        leave(tmp_path / str(number), config_of(*words, f"seed={number}"), accuracy=0.5, result={"data": facts})
    labels = dict(make_report([tmp_path]).setup.facts)["labels"]
    assert "(40.0%) are wrong, held-out labels are noisy (2 runs); held-out labels are clean (1 run), test" in labels


def test_shared_settings_that_are_not_the_default_come_first_and_the_others_are_folded(tmp_path):
    for seed in range(2):
        words = ("epochs=3", "noise=symmetric", "noise.rate=0.3", f"seed={seed}")
        leave(tmp_path / str(seed), config_of(*words), accuracy=0.5)
    report = make_report([tmp_path])
    changed, default = dict(report.setup.changed_settings), dict(report.setup.default_settings)
    assert (changed["epochs"], changed["noise"], changed["noise.rate"]) == ("3", "symmetric", "0.3")
    assert default["batch_size"] == "128" and not changed.keys() & default.keys()
    shown, folded = html_of(report).partition("<h2>Settings that")[2].partition("<details>")[::2]
    assert "<dt>noise.rate</dt><dd>0.3</dd>" in shown and "batch_size" not in shown
    assert "<dt>batch_size</dt><dd>128</dd>" in folded.partition("</details>")[0]


def test_arms_have_early_stopping_time_and_fit_beside_the_last_epoch(tmp_path):
    last, best = {"sgd": (0.6, 0.7), "sam": (0.9, 0.8)}, {"sgd": (0.85, 0.8), "sam": (0.95, 0.9)}
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        result = {
            "best": {"test/accuracy": best[optimizer][seed], "validation/accuracy": 0.8, "lr": 0.1}, "best_epoch": 2,
            "selected_by": "validation/accuracy", "training_seconds": 20.0 + seed, "gradient_evaluations": 30,
        }  # fmt: skip
        final = {"train/accuracy": 0.6, "train/accuracy_clean": 0.9, "train/memorised": 0.1, "validation/accuracy": 0.7}
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=last[optimizer][seed],
            final=final, result=result)  # fmt: skip
    report = make_report([tmp_path])
    table = report.table.set_index("optimizer")
    for optimizer, values in best.items():
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert table.loc[optimizer, "early stopping"] == f"{np.mean(values):.4f} ± {(high - low) / 2:.4f}"
        assert table.loc[optimizer, "seconds"] == "20.5"
        assert table.loc[optimizer, "gradients"] == "30"
        assert table.loc[optimizer, ["fit", "right", "memorised"]].to_list() == ["60.0%", "90.0%", "10.0%"]
    terms = dict(report.terms)
    assert {
        "rho",
        "early stopping",
        "fit",
        "right",
        "memorised",
        "seconds",
        "gradients",
        "contains 0",
        "p",
    } <= terms.keys()
    assert "n = 2 pairs" in terms["difference to sgd"]
    page = html_of(report)
    for meaning in terms.values():
        assert str(escape(meaning)) in page
    csv = pd.read_csv(io.StringIO(report.to_table_csv())).set_index("optimizer")
    assert csv.loc["sam", "best/test/accuracy mean"] == pytest.approx(0.925)
    assert csv.loc["sam", "training_seconds"] == pytest.approx(20.5)
    assert csv.loc["sam", "pairs"] == 2
    assert csv.loc["sam", "p_value"] == pytest.approx(stats.ttest_rel(last["sam"], last["sgd"]).pvalue)
    early = make_report([tmp_path], "best/test/accuracy")
    sam = next(group for group, label in early.labels.items() if label.startswith("sam"))
    assert early.differences[sam][1].mean == pytest.approx(0.1)
    assert early.ranking[0].metric == "best/validation/accuracy"


def test_equal_differences_of_all_seeds_are_not_called_significant(tmp_path, drawn_plots):
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        accuracy = 0.6 + 0.1 * seed + 0.01 * (optimizer == "sam")
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=accuracy)
    report = make_report([tmp_path])
    (finding,) = report.findings
    assert "Difference +0.0100, 95% interval +0.0100 to +0.0100 (n = 2 pairs): all pairs differ by the same" in finding
    assert "significance is unknown" in finding and "is significantly" not in finding
    row = report.table.set_index("optimizer").loc["sam"]
    assert list(row[["difference to sgd", "contains 0", "p"]]) == ["+0.0100 ± 0.0000", "-", "-"]
    assert "too few distinct values for a test" in dict(report.terms)["contains 0"]
    caption, rows = write_narrow_table(report).split(r"\toprule")
    assert "An interval of width 0 has too few distinct values for a test." in caption and "{*}" not in rows
    captions = [plot.caption for plot in draw_plots(report) if plot.name == "differences"]
    assert captions[0].endswith("A point without a width is not: too few distinct values for a test.")


@pytest.mark.parametrize(("best", "said"), [("sam", "Difference +0.0900"), ("sgd", "test/accuracy 0.9900 (n = 1)")])
def test_the_best_of_many_groups_is_called_so_and_optimistic(best, said, tmp_path):
    for size, optimizer in itertools.product(range(1, 8), ("sgd", "sam")):
        accuracy = 0.99 if (size, optimizer) == (7, best) else 0.9
        lay(tmp_path / f"{size}{optimizer}", optimizer=optimizer, batch_size=size, accuracy=accuracy)
    report = make_report([tmp_path])
    (finding,) = report.findings
    assert "batch_size 7" in finding and "(best of 14 by test/accuracy, which is optimistic)" in finding
    assert said in finding
    assert "Selected on the test set, so optimistic." in report.to_text()


def test_the_findings_compare_early_stopping_and_name_the_cost(tmp_path, monkeypatch):
    last, best = {"sgd": (0.6, 0.61), "sam": (0.9, 0.92)}, {"sgd": (0.85, 0.8), "sam": (0.86, 0.95)}
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        result = {
            "best": {"test/accuracy": best[optimizer][seed]}, "selected_by": "validation/accuracy",
            "training_seconds": 20.0, "gradient_evaluations": {"sgd": 30, "sam": 60}[optimizer],
        }  # fmt: skip
        lay(tmp_path / "it's" / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=last[optimizer][seed],
            result=result)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    report = make_report([tmp_path / "it's"])
    headline, early, cost = report.findings
    assert "test/accuracy in the last epoch 0.9100" in headline and "significantly better" in headline
    test = stats.ttest_rel(best["sam"], best["sgd"])
    found, pairs = test.confidence_interval(0.95), f"(n = 2 pairs, p = {test.pvalue:.2g})"
    assert f"Difference +0.0800, 95% interval {found.low:+.4f} to {found.high:+.4f} {pairs}: it contains" in early
    sam = report.table.set_index("optimizer").loc["sam"]
    assert sam["difference, early stopping"] == f"+0.0800 ± {(found.high - found.low) / 2:.4f}"
    assert cost.startswith(
        "sam, rho 0.05 costs 2 times the gradient evaluations of sgd. At equal cost: train sgd for 2"
    )
    assert shlex.split(cost.partition("sam-report")[2]) == ["it's", "--against", "cost"]
    for seed in range(2):
        result = {"gradient_evaluations": 60}
        lay(tmp_path / "it's" / f"long{seed}", optimizer="sgd", seed=seed, epochs=6, result=result)
        config = tmp_path / "it's" / f"long{seed}" / "config.yaml"
        config.write_text(config.read_text().replace("epochs: 3", "epochs: 6"))
    (cost,) = [text for text in make_report([tmp_path / "it's"]).findings if "costs" in text]
    assert cost.endswith("At equal cost: sam-report 'it'\"'\"'s' --against cost")
    assert not any("costs" in text for text in make_report([tmp_path / "it's"], against="cost").findings)


def test_the_caption_counts_the_pairs_where_seeds_are_missing(tmp_path):
    for optimizer, seed in (("sgd", 0), ("sgd", 1), ("sam", 0), ("sam", 1), ("sam", 2)):
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=0.8 + seed / 100)
    assert "Each difference is over 2 pairs of runs." in write_narrow_table(make_report([tmp_path]))
    lay(tmp_path / "sgd2", optimizer="sgd", seed=2)
    assert "pairs of runs" not in write_narrow_table(make_report([tmp_path]))


def test_the_command_for_equal_cost_is_for_the_same_runs(tmp_path, monkeypatch):
    runs, costs = tmp_path / "outputs" / "runs", {"sgd": 30, "sam": 60}
    for name, cost in costs.items():
        for folder in ("all", runs):
            lay(tmp_path / folder / name, optimizer=name, result={"gradient_evaluations": cost})
    lay(runs / "other", rho=0.2)
    refused = tmp_path / "all" / NOT_STARTED / "rho=-1"
    refused.mkdir(parents=True)
    (refused / "status.json").write_text('{"status": "refused"}')
    monkeypatch.chdir(tmp_path)
    for given, name in (([runs / "sgd", runs / "sam"], "runs"), ([tmp_path / "all"], "all")):
        report = make_report(given, by=["optimizer"])
        (cost,) = [text for text in report.findings if "costs" in text]
        words = [*(str(folder.relative_to(tmp_path)) for folder in given), "--by", "optimizer", "--against", "cost"]
        assert shlex.split(cost.partition("sam-report")[2]) == words
        assert rf"\label{{tab:{name}}}" in write_narrow_table(report)


def test_the_definition_of_a_noisy_validation_accuracy_says_its_ceiling(tmp_path):
    for seed, (labels, wrong) in enumerate((("clean", 300), ("noisy", 360), ("noisy", 180))):
        data = {"train": 900, "validation": 100, "test": 300, "classes": 10, "wrong_labels": wrong}
        words = ("noise=symmetric", "noise.rate=0.4", "data.val_fraction=0.1", f"data.val_labels={labels}")
        config, final = config_of(*words, f"seed={seed}"), {"validation/accuracy": 0.57}
        leave(tmp_path / str(seed), config, accuracy=0.9, result={"data": data}, **final)
    assert dict(make_report([tmp_path / "0"]).terms)["validation/accuracy"] == "accuracy on the held-out images"
    meaning = dict(make_report([tmp_path]).terms)["validation/accuracy"]
    assert "(20% to 40% wrong), so a network that is always right reaches about 60% to 80%" in meaning


@pytest.mark.parametrize(("slowest", "is_told"), [(11.9, False), (12.1, True)])
def test_times_that_differ_between_seeds_are_told(slowest, is_told, tmp_path):
    for seed, (seconds, gradients) in enumerate(((10.0, 100), (slowest, 100), (20.0, 200))):  # the last ran for longer
        result = {"training_seconds": seconds, "gradient_evaluations": gradients}
        lay(tmp_path / str(seed), seed=seed, result=result)
    told = [text for text in make_report([tmp_path]).remarks if text.startswith("seconds are unreliable")]
    assert len(told) == is_told
    assert all("up to 1.2 times as long" in text for text in told)


@pytest.mark.parametrize("metric", ["validation/nll", "validation_ema/accuracy"])
def test_the_metric_that_chose_the_epoch_of_early_stopping_is_named(metric, tmp_path):
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        best = {"test/accuracy": 0.8 + 0.01 * seed, "test_ema/accuracy": 0.9 + 0.01 * seed}
        result = {"best": best, "best_epoch": 2, "selected_by": metric}
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=0.6, result=result)
    report = make_report([tmp_path])
    assert f"the epoch with the best {metric};" in dict(report.terms)["early stopping"]
    assert any(f"(epoch of the best {metric})" in sentence for sentence in report.findings)
    best = metric.replace("_", r"\_")
    assert f"Early stopping: the epoch of the best {best} of the same run." in write_narrow_table(report)
    assert report.runs["best/test_ema/accuracy"].mean() == pytest.approx(0.905)


@pytest.mark.parametrize(
    ("patience", "epoch"), [(None, "last epoch"), (2, "last epoch (best epoch with early_stopping.patience)")]
)
def test_the_columns_of_runs_with_a_patience_are_from_the_best_epoch(patience, epoch, tmp_path):
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        result = {"best": {"test/accuracy": 0.8 + 0.01 * seed}, "best_epoch": 2, "selected_by": "validation/accuracy"}
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=0.6, result=result,
            early_stopping={"patience": patience}, final={"train/accuracy": 0.9})  # fmt: skip
    report = make_report([tmp_path])
    terms = dict(report.terms)
    assert terms["early stopping"].endswith(f"; other columns: {epoch}")
    assert f" in the training steps of the {epoch} (fitted: 95% or more)" in terms["fit"]
    assert f"test/accuracy in the {epoch} 0.6000" in report.findings[0]
    assert rf"\emph{{{epoch.replace('_', chr(92) + '_')}}}" in write_narrow_table(report)


def test_without_held_out_images_there_is_no_early_stopping(tmp_path):
    lay(tmp_path / "a", result={"best": {"test/accuracy": 0.9}, "best_epoch": 3, "selected_by": "last epoch"})
    report = make_report([tmp_path])
    assert "early stopping" not in report.table
    assert report.metrics == ["test/accuracy", "test/nll"]


def test_runs_whose_metric_is_not_a_number_are_counted(tmp_path):
    for seed, value in enumerate((0.5, float("nan"), 0.7)):
        lay(tmp_path / str(seed), seed=seed, accuracy=value)
    report = make_report([tmp_path])
    assert list(report.table["n"]) == ["2"]
    assert "1 of 3 finished runs have no test/accuracy, or NaN; n does not count them." in report.remarks


DAMAGED = [
    {"final": None}, {"final": {"test/accuracy": "high"}}, {"data": {"train": 3}}, {"training_seconds": "long"},
    {"data": [1], "best": 3, "step": None}, {"final": {"test/accuracy": float("inf")}},
]  # fmt: skip


def test_files_that_were_damaged_stop_no_report(tmp_path):
    for seed, entries in enumerate(DAMAGED):
        folder = lay(tmp_path / str(seed), seed=seed)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | entries))
    (lay(tmp_path / "text", seed=10) / "result.json").write_text("{")
    folder = lay(tmp_path / "files", seed=11, accuracy=0.9)
    (folder / "metrics.jsonl").write_text('3\n[1]\n{"test/nll": 1, "test/accuracy": "x", "epoch": 1}\n')
    (folder / "environment.json").write_text('{"command": 3, "packages": [], "git_commit": 4}')
    (folder / "status.json").write_text("[]")
    (lay(tmp_path / "good", seed=12, accuracy=0.7))
    report = make_report([tmp_path])
    write_report(report, tmp_path, "x")
    (line,) = report.unfinished_runs
    assert line.startswith("unreadable: text: ") and line.endswith(
        "text/result.json is missing or damaged; the same command again writes it"
    )
    assert dict(report.setup.facts)["runs"] == "8 finished, 1 unreadable"


def test_data_sets_that_are_mixed_are_compared_within_themselves(tmp_path):
    for data, optimizer, seed in itertools.product(("digits", "synthetic"), ("sgd", "sam"), range(2)):
        accuracy = {"digits": 0.9, "synthetic": 0.5}[data] + 0.01 * seed + 0.02 * (optimizer == "sam")
        words = (f"data={data}", f"optimizer={optimizer}", f"seed={seed}")
        leave(tmp_path / f"{data}{optimizer}{seed}", config_of(*words), accuracy=accuracy)
    report = make_report([tmp_path])
    assert [found.mean for _, found in report.differences.values()] == pytest.approx([0.02, 0.02])
    assert "digits" in dict(report.setup.facts)["data"] and "synthetic" in dict(report.setup.facts)["data"]


def test_what_earlier_versions_did_not_record_is_said(sweep):
    facts = dict(make_report([sweep[0]]).setup.facts)
    assert facts["data"] == "digits: numbers of images are not recorded (runs of an earlier version)"
    assert facts["precision"] == "precision=auto, the chosen format is not recorded (runs of an earlier version)"
    assert facts["time"] == "training time is not recorded (runs of an earlier version)"
    assert facts["runs"] == "1 failed, 12 finished"


def test_different_precisions_of_one_table_are_told_everywhere(tmp_path):
    for seed, precision in enumerate(("bf16", "bf16", "fp32")):
        lay(tmp_path / str(seed), seed=seed, environment={"resolved_precision": precision, "git_commit": "a" * 40})
    report = make_report([tmp_path])
    for text in (report.to_text(), report.to_markdown(), html_of(report)):
        assert "The runs have different precisions: bf16 (2), fp32 (1)." in text
    assert len(report.setup.warnings) == 1


def test_the_table_is_written_as_latex_markdown_and_csv_and_every_plot_in_three_formats(sweep, tmp_path, drawn_plots):
    report = make_report([sweep[0]])
    write_report(report, tmp_path, "rho")
    latex = (tmp_path / "report-full.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 2
    assert r"95\% interval" in latex and r"$\pm$" in latex
    table = pd.read_csv(tmp_path / "report-table.csv")
    assert list(table["mean"]) == pytest.approx(list(report.groups["mean"]), rel=1e-12)
    differences = [found.mean for _, found in report.differences.values()]
    assert list(table["difference"].dropna()) == pytest.approx(differences, rel=1e-12)
    assert "| optimizer | rho | test/accuracy |" in (tmp_path / "report.md").read_text()
    signatures = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}
    for name, (suffix, start) in itertools.product(("rho", "differences", "curves", "gap"), signatures.items()):
        assert (tmp_path / f"report-{name}.{suffix}").read_bytes().startswith(start)


def test_the_table_for_a_paper_is_narrow_in_percent_and_marks_what_is_significant(tmp_path):
    last, best = {"sgd": (0.6, 0.61), "sam": (0.9, 0.92)}, {"sgd": (0.9, 0.95), "sam": (0.86, 0.8)}
    for optimizer, seed in itertools.product(("sgd", "sam"), range(2)):
        result = {
            "best": {"test/accuracy": best[optimizer][seed]}, "selected_by": "validation/accuracy",
            "gradient_evaluations": {"sgd": 30, "sam": 60}[optimizer],
        }  # fmt: skip
        lay(tmp_path / f"{optimizer}{seed}", optimizer=optimizer, seed=seed, accuracy=last[optimizer][seed],
            result=result)  # fmt: skip
    latex = write_narrow_table(make_report([tmp_path]))
    rows = [line.removesuffix(r" \\").split(" & ") for line in latex.splitlines() if " & " in line]

    def percent(values):
        return (100 * stats.ttest_1samp(values, 0).confidence_interval(0.95).high) - 100 * np.mean(values)

    heads, sgd, sam, _, early = rows
    assert heads == ["method", r"test accuracy (\%)", "difference", "$n$", "cost"]
    assert sgd == ["SGD", rf"60.50 $\pm$ {percent(last['sgd']):.2f}", "--", "2", r"1$\times$"]
    half = percent(np.subtract(last["sam"], last["sgd"]))
    assert sam[0] == r"SAM, $\rho$ 0.05"
    assert sam[2:] == [rf"$+$30.50 $\pm$ {half:.2f}$^{{*}}$", "2", r"2$\times$"]
    assert early[1] == rf"83.00 $\pm$ {percent(best['sam']):.2f}"
    assert early[2] == rf"$-$9.50 $\pm$ {percent(np.subtract(best['sam'], best['sgd'])):.2f}"
    assert "% data: digits" in latex and "over $n$ = 2 seeds" in latex
    loss = write_narrow_table(make_report([tmp_path], "test/nll"))
    assert "test nll & difference & $n$ & cost" in loss and "$-$0.3050" in loss


@pytest.mark.parametrize(
    ("folder", "rates", "task"),
    [
        ("noise_40", (0.4,), "SmallCNN on digits, 40% of the training labels wrong (symmetric), 3 epochs"),
        ("both", (0, 0.2, 0.4), "SmallCNN on digits, 0, 20, 40% of the training labels wrong (symmetric), 3 epochs"),
        ("none", (0,), "SmallCNN on digits, 3 epochs"),
    ],
)
def test_page_and_captions_name_the_task_and_labels_name_the_sweep(folder, rates, task, tmp_path):
    for rate, optimizer, seed in itertools.product(rates, ("sgd", "sam"), range(2)):
        noise = {"_target_": "sam_runner.data.noise.symmetric", "rate": rate, "include_true_class": False}
        noise = noise if rate else {"_target_": "sam_runner.data.noise.none"}
        facts = {"train": 1000, "test": 300, "classes": 10, "wrong_labels": 1000 * rate}
        lay(tmp_path / folder / f"{rate}{optimizer}{seed}", optimizer=optimizer, seed=seed, noise=noise,
            result={"data": facts})  # fmt: skip
    report = make_report([tmp_path / folder])
    assert f'<p class="task">{task}</p>' in html_of(report)
    assert report.to_markdown().startswith(f"{task}.")
    name = folder.replace("_", "-")
    labels = [f"tab:{name}", f"tab:{name}-all"]
    for latex, label in zip((write_narrow_table(report), write_full_tables(report)), labels, strict=True):
        (caption,) = re.findall(r"\\caption\{(.*)\}", latex)
        assert task.replace("%", r"\%") + ". " in caption and "over $n$ = 2 seeds" in caption
        assert re.findall(r"\\label\{(.*)\}", latex) == [label]
    add_metrics(tmp_path / folder / f"{rates[0]}sam0", **{"test_calibration_error": 0.1})
    assert r" Test/calibration\_error: mean" in write_full_tables(
        make_report([tmp_path / folder], "test/calibration_error")
    )
    other = make_report([tmp_path / folder], "test/nll", against="cost")
    assert rf"\label{{tab:{name}-test-nll-cost}}" in write_narrow_table(other)


@pytest.mark.parametrize(
    ("commits", "warnings"),
    [
        ("aabbbbB", ["The runs have different commits: {a} (2), {b} (5). Runs of {a}: run0, run1.",
                     "1 of 7 runs used source code with uncommitted changes: run6."]),
        ("aabbbbccc", ["The runs have different commits: {a} (2), {b} (4), {c} (3). Runs of {a}: run0, run1;"
                       " {c}: run6, run7, run8."]),
        ("aaaabbbbb", ["The runs have different commits: {a} (4), {b} (5). Runs of {a}: run0, run1, run2 and 1 more."]),
        ("AA", ["2 of 2 runs used source code with uncommitted changes."]),
        ("aa", []),
    ],
)  # fmt: skip
def test_warnings_name_the_runs_that_differ_and_each_run_has_its_commit(commits, warnings, tmp_path):
    for seed, letter in enumerate(commits):
        environment = {"git_commit": letter.lower() * 40, "git_changes": letter.isupper()}
        lay(tmp_path / f"run{seed}", seed=seed, environment=environment)
    report = make_report([tmp_path])
    assert report.setup.warnings == [text.format(**{name: name * 12 for name in "abc"}) for text in warnings]
    cells = [letter.lower() * 12 + ("-dirty" if letter.isupper() else "") for letter in commits]
    assert list(pd.read_csv(io.StringIO(report.to_csv()))["commit"]) == cells
    shown = re.findall(r"<td>\d</td><td>finished</td><td>(.*?)</td>", html_of(report))
    assert shown == (cells if len({*cells}) > 1 else [])


def test_latex_has_minus_signs_and_no_character_that_breaks_it():
    table = pd.DataFrame({"a_b": ["x%$#&{}~^\\<", "-"], "c": ["-0.1 ± 0.2", "+0.3"]})
    body = latex_table(table, {"c"}).partition("\\midrule\n")[2]
    first, second = body.splitlines()[:2]
    assert first.endswith(r"& $-$0.1 $\pm$ 0.2 \\")
    assert second == r"- & +0.3 \\" and r"\textless{} &" in first  # the usual encoding shows < as another character
    assert not re.search(r"(?<!\\)[%#{}]", re.sub(r"\\text\w+(\{\})?|\{\}", "", first).replace("\\ ", ""))


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(sweep, tmp_path, monkeypatch, capsys, drawn_plots):
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
    assert done.stdout.count("<svg") == 4
    assert "± " in done.stdout


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_ten_seconds(tmp_path, monkeypatch, capsys, drawn_plots):
    for rho in range(1, 101):
        for seed in range(10):
            lay(tmp_path / "many" / f"{rho}-{seed}", rho=rho / 1000, seed=seed, accuracy=0.5 + rho / 1000)
    started = time.process_time()  # a machine may have other work
    done = invoke(monkeypatch, capsys, tmp_path, "many", entry=report_command.main)
    seconds = time.process_time() - started
    assert done.returncode == 0
    assert len(re.findall(r"(?m)^0\.\d+ .* 10  0 1 2 3 4 5 6 7 8 9$", done.stdout)) == 100
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
    assert page.read_text().count("<svg") == 4
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
    assert len([line for line in done.stdout.splitlines() if re.match(r"0\.(05|1)  +0\.", line)]) == 2
