"""The setting ``logger``: the places beside metrics.jsonl, packages that are missing, and loggers that fail.

wandb and mlflow are small modules here that record calls; docs/runs.md says what was seen with the packages.
"""

import importlib.util
import json
import sys
import types

import pandas
import pytest
import yaml

from sam_runner.config.rules.files import require_files
from sam_runner.runs.logging.tensorboard import TensorboardLogger
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of, invoke, read_rows, train_tiny, write_experiment
from tests.training.test_resume import stop_after


class Recorder:
    """An object with any methods; it records their calls as (name, arguments, keywords)."""

    def __init__(self, **attributes):
        self.calls = []
        vars(self).update(attributes)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **keywords: self.calls.append((name, arguments, keywords))

    def named(self, name):
        return [(arguments, keywords) for called, arguments, keywords in self.calls if called == name]


@pytest.fixture
def fake_wandb(monkeypatch):
    runs, module = [], types.ModuleType("wandb")

    def init(**options):
        run = Recorder(id=options["id"] or "new", options=options, config=Recorder(), summary=Recorder())
        runs.append(run)
        return run

    module.init, module.Settings, module.Image = init, lambda **given: given, lambda pixels: ("picture", pixels.shape)
    _install(monkeypatch, "wandb", module)
    return runs


@pytest.fixture
def fake_mlflow(monkeypatch):
    client, module = Recorder(), types.ModuleType("mlflow")
    client.get_experiment_by_name = lambda name: None
    client.create_experiment = lambda name: f"experiment {name}"
    made = types.SimpleNamespace(info=types.SimpleNamespace(run_id="made"))
    client.create_run = lambda number, run_name: client.calls.append(("create_run", (number, run_name), {})) or made
    module.entities, module.tracking = types.ModuleType("mlflow.entities"), types.ModuleType("mlflow.tracking")
    module.entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    module.entities.Param = lambda key, value: (key, value)
    module.tracking.MlflowClient = lambda: client
    for name in ("entities", "tracking"):
        _install(monkeypatch, f"mlflow.{name}", getattr(module, name))
    _install(monkeypatch, "mlflow", module)
    return client


def _install(monkeypatch, name, module):
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    for own in ("wandb_run", "mlflow_run"):
        monkeypatch.delitem(sys.modules, f"sam_runner.runs.logging.{own}", raising=False)


@pytest.mark.parametrize("word", ["logger=tensorboard,csv", "logger=[tensorboard,csv]", "logger=csv", "logger=[]"])
def test_both_forms_of_a_list_choose_the_loggers(word, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, word, "run_dir=run")
    assert done.returncode == 0, done.stderr
    files = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir() if path.suffix != ".jsonl"}
    names = files & {"events", "metrics"}
    assert names == {
        "events" if name == "tensorboard" else "metrics" for name in word[7:].strip("[]").split(",") if name
    }
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size


def test_a_file_may_have_either_form(tmp_path, monkeypatch, capsys):
    for text in ("logger: csv,tensorboard", "logger: [csv, tensorboard]"):
        write_experiment(tmp_path, f"# @package _global_\n{text}\n")
        done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", "mine", "experiment=own", *TINY, "run_dir=run")
        assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["logger"] == ["csv", "tensorboard"]


def test_in_a_sweep_a_list_is_one_value(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "seed=0,1", "logger=csv,tensorboard", "sweep_name=s")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs/sweeps/s").glob("*/metrics.csv"))) == 2


def test_a_wrong_name_is_answered(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "logger=csv,wandbb")
    assert done.returncode == 2
    assert "accepted: tensorboard, csv, wandb, mlflow; did you mean wandb?" in done.stderr


def test_the_csv_has_the_numbers_of_the_run_also_after_it_was_continued(tmp_path, monkeypatch, capsys):
    words = [*TINY, "optimizer=sam", "logger=csv", "run_dir=run"]
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert invoke(patch, capsys, tmp_path, *words).returncode == 75
    assert pandas.read_csv(tmp_path / "run" / "metrics.csv")["step"].tolist() == [2, 4]
    assert invoke(monkeypatch, capsys, tmp_path, *words).returncode == 0
    table = pandas.read_csv(tmp_path / "run" / "metrics.csv")
    rows = read_rows(tmp_path / "run")
    assert len(table) == len(rows)
    for row, (_, cells) in zip(rows, table.iterrows(), strict=True):
        assert cells.dropna().to_dict() == pytest.approx(row, rel=1e-15)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_any_work(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: (
        None if name == package else find(name)
    ))  # fmt: skip
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, f"logger={package}", "run_dir=run")
    assert done.returncode == 2
    assert f"error: logger={package} needs the package {package}\n  pip install {package}" in done.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="pip install"):
        require_files(config_of(f"logger=[{package}]"))


def test_wandb_gets_every_row_and_the_final_metrics_and_is_continued(fake_wandb, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = [*TINY, "optimizer=sam", "rho=0.1", "logger=wandb", "run_dir=run"]
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        invoke(patch, capsys, tmp_path, *words)
    assert invoke(monkeypatch, capsys, tmp_path, *words).returncode == 0
    first, second = fake_wandb
    assert (first.options["id"], second.options["id"], second.options["resume"]) == (None, "new", "allow")
    assert first.options["mode"] == "offline"
    assert len(first.named("finish")) == len(second.named("finish")) == 1
    logged = [(values, given["step"]) for run in fake_wandb for (values,), given in run.named("log")]
    scalars = [{"step": step, **values} for values, step in logged if "epoch" in values]
    assert scalars == read_rows(tmp_path / "run")
    assert any(values.get("train/images", ("",))[0] == "picture" for values, _ in logged)
    final = json.loads((tmp_path / "run" / "result.json").read_text())["final"]
    assert second.summary.named("update") == [((final,), {})]
    assert ({"optimizer": "sam", "rho": 0.1}.items()) <= second.config.named("update")[-1][0][0].items()


def test_mlflow_gets_every_row_and_the_settings(fake_mlflow, tmp_path):
    folder = train_tiny(tmp_path / "run", "optimizer=sam", "logger=mlflow")
    batches = [given for _, given in fake_mlflow.named("log_batch")]
    rows = [
        {"step": step, **{key: value for key, value, _ in given["metrics"]}}
        for given in batches
        if "params" not in given and {key for key, *_ in given["metrics"]} >= {"epoch"}
        for step in {step for *_, step in given["metrics"]}
    ]
    assert rows == read_rows(folder)
    (settings,) = [dict(given["params"]) for given in batches if "params" in given]
    assert settings["optimizer"] == "sam"
    assert fake_mlflow.named("create_run") == [(("experiment sam_runner", "run"), {})]
    assert len(fake_mlflow.named("set_terminated")) == 1


@pytest.mark.parametrize("where", ["__init__", "scalars", "flush", "hparams", "close"])
def test_a_logger_that_fails_is_one_warning_and_the_run_ends_as_without_it(where, tmp_path, monkeypatch, capsys):
    expected = train_tiny(tmp_path / "expected", "optimizer=sam", "logger=[]")

    def fail(*_, **__):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(TensorboardLogger, where, fail)
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "optimizer=sam", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the server is gone") == 1
    assert "logger=tensorboard" in done.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
