"""Runs read from disk: statuses, settings, one row for each distinct run."""

import itertools
import json
import re
import socket
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from sam_runner.reports.report import make_report
from sam_runner.reports.results import COSTS, load_results, read_curve, read_runs, report_settings
from sam_runner.utils.errors import InputError
from tests.helpers import config_of
from tests.run_folders import lay, leave


def test_two_folders_and_one_twice_count_each_run_once(sweep, tmp_path):
    lay(tmp_path / "other", rho=0.3)
    assert len(read_runs([sweep[0], tmp_path, sweep[0]])) == 14


def test_results_have_settings_seed_and_metrics_of_each_run(sweep):
    folder, accuracies = sweep
    results = load_results([folder])
    assert len(results) == 13
    means = results.groupby(["optimizer", "rho"], dropna=False)["test/accuracy"].mean().dropna()
    assert sorted(means) == pytest.approx(sorted(sum(values) / 3 for values in accuracies.values()))
    assert sorted(results.loc[results["optimizer"] == "sgd", "seed"]) == [0, 1, 2]
    assert results["rho"].isna().sum() == 3
    assert list(results["epochs"].unique()) == [3]


def test_equal_runs_are_one_row_and_the_finished_one_is_kept(tmp_path):
    lay(tmp_path / "a", seed=1, accuracy=0.5)
    lay(tmp_path / "b", seed=1, accuracy=0.6)
    lay(tmp_path / "c", seed=1, status="failed")
    lay(tmp_path / "d", seed=2, status="failed")
    results = load_results([str(tmp_path)])
    assert [Path(folder).name for folder in results["folder"]] == ["b", "d"]
    assert list(results["status"]) == ["finished", "failed"]


def test_a_metric_that_is_also_a_setting_is_left_out(tmp_path):
    leave(tmp_path / "run", config_of("optimizer=sam", "lr=0.3"), accuracy=0.5, **{"rho": 0.05, "lr": 0.0})
    results = load_results([tmp_path])
    assert results.columns.is_unique
    assert list(results["lr"]) == [0.3]


def test_a_folder_without_runs_gives_an_empty_table(tmp_path):
    assert load_results([tmp_path]).empty


def test_jobs_without_a_run_have_their_status_and_error(tmp_path):
    lay(tmp_path / "run")
    folder = tmp_path / "not_started" / "rho=-1"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"status": "refused", "error": "no", "job": "rho=-1"}))
    jobs = load_results([tmp_path]).set_index("job")
    assert tuple(jobs.loc["rho=-1", ["status", "error"]]) == ("refused", "no")
    assert pd.isna(jobs.loc["rho=-1", "seed"])


@pytest.mark.parametrize(("host", "status"), [(socket.gethostname(), "died"), ("elsewhere", "running or died")])
def test_a_running_status_without_a_process_is_a_run_that_died(host, status, tmp_path):
    folder = lay(tmp_path / "run", status="running")
    (folder / "status.json").write_text(json.dumps({"status": "running", "host": host}))
    (folder / ".lock").touch()
    assert [run.status for run in read_runs([tmp_path])] == [status]


@pytest.mark.parametrize("text", ["a: &a [1]\nb: *a\n", "- 1\n", "a: [\n"])
def test_a_damaged_configuration_is_named(text, tmp_path):
    folder = lay(tmp_path / "run")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(Path("run") / "config.yaml"))):
        read_runs([tmp_path])


def test_what_can_be_read_is_read_and_what_is_left_out_is_said(tmp_path):
    lay(tmp_path / "good", accuracy=0.7)
    (lay(tmp_path / "damaged", seed=1) / "config.yaml").write_text("a: [\n")
    own = lay(tmp_path / "own", seed=2, model={"_target_": "my_models.Mlp", "width": 3})
    with pytest.warns(UserWarning, match="left out: ") as caught:
        results = load_results([tmp_path])
    (damaged, trusted) = sorted(str(warning.message) for warning in caught)
    assert damaged.startswith(f"left out: {tmp_path}/damaged/config.yaml")
    assert "my_models.Mlp is not in a trusted module; set SAM_RUNNER_TRUSTED as for sam-train" in trusted
    assert str(own) in trusted and "\n" not in trusted + damaged
    statuses = {Path(folder).name: status for folder, status in zip(results["folder"], results["status"], strict=True)}
    assert statuses == {"good": "finished", "damaged": "unreadable", "own": "unreadable"}
    assert list(results["test/accuracy"].dropna()) == [0.7]
    text = make_report([tmp_path]).to_text()
    assert "unreadable: own: " in text and "set SAM_RUNNER_TRUSTED" in text


@pytest.mark.parametrize(("base", "name"), [("sgd", "sgd"), ("adamw", "none")])
def test_sam_with_rho_0_is_reported_as_the_option_without_sam(base, name):
    assert report_settings(config_of("optimizer=sam", f"optimizer/base={base}", "rho=0"))["optimizer"] == name
    assert report_settings(config_of("optimizer=sgd", f"optimizer/base={base}"))["optimizer"] == name


def test_a_curve_ends_before_a_line_that_is_being_written(tmp_path):
    folder = lay(tmp_path / "run", accuracy=0.9)
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 40, "ep')
    assert read_curve(folder, "test/accuracy").to_dict() == pytest.approx({1: 0.3, 2: 0.6, 3: 0.9})
    assert read_curve(tmp_path, "test/accuracy").empty


def test_the_example_of_the_page_prints_the_table_of_label_noise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = {}
    for rate, (optimizer, rho), seed in itertools.product((0.4, 0.8), (("sgd", 0), ("sam", 0.05)), (2, 0, 1)):
        values.setdefault((rate, rho), {})[seed] = accuracy = 0.9 - rate / 2 + rho + seed**2 / 100
        noise = {"_target_": "sam_runner.data.noise.symmetric", "rate": rate, "include_true_class": False}
        lay(Path(f"outputs/sweeps/label-noise/{rate}{optimizer}{seed}"), optimizer=optimizer, rho=rho, seed=seed,
            noise=noise, accuracy=accuracy, final={"train/memorised": accuracy / 2})  # fmt: skip
    lay(Path("outputs/sweeps/label-noise/failed"), status="failed")
    page = (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(compile(code, "docs/reports.md", "exec"), scope := {})
    printed = capsys.readouterr().out
    assert len(scope["table"]) == 4
    for (rate, rho), by_seed in values.items():
        row = scope["table"].loc[(rate, rho)].iloc[0]
        low, high = stats.ttest_1samp([*by_seed.values()], 0).confidence_interval(0.95)
        assert (row["mean"], row["95% interval"]) == pytest.approx(((low + high) / 2, (high - low) / 2))
        assert row["memorised (seed 0)"] == by_seed[0] / 2
        assert f"{row['mean']:.3f}".rstrip("0") in printed


def test_results_have_the_costs_of_each_run_and_nan_where_none_are_recorded(tmp_path):
    costs = {"gradient_evaluations": 60, "images_forward": 20, "images_backward": 20, "training_seconds": 1.5}
    lay(tmp_path / "new", result=costs | {"peak_memory_bytes": None}, environment={"resolved_precision": "bf16"})
    lay(tmp_path / "old", seed=1)
    results = load_results([tmp_path])
    assert results.loc[0, [*costs, "resolved_precision"]].to_dict() == costs | {"resolved_precision": "bf16"}
    assert results.loc[1, [*COSTS, "resolved_precision"]].isna().all()
