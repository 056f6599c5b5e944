"""Runs read from disk: statuses, settings, one row for each distinct run."""

import json
import re
import socket
from pathlib import Path

import pandas as pd
import pytest

from sam_runner.reports.results import load_results, read_curve, read_runs, report_settings
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


def test_sam_with_rho_0_is_reported_as_sgd():
    assert report_settings(config_of("optimizer=sam", "rho=0"))["optimizer"] == "sgd"


def test_a_curve_ends_before_a_line_that_is_being_written(tmp_path):
    folder = lay(tmp_path / "run", accuracy=0.9)
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 40, "ep')
    assert read_curve(folder, "test/accuracy").to_dict() == pytest.approx({1: 0.3, 2: 0.6, 3: 0.9})
    assert read_curve(tmp_path, "test/accuracy").empty
