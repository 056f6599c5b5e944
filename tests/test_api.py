"""The public Python API: what ``import sam_runner`` offers, and that it costs nothing before it is used."""

import subprocess
import sys

import pytest
import torch

import sam_runner
from sam_runner.utils.errors import InputError
from tests.helpers import TINY


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, sam_runner; dir(sam_runner)\nsys.exit(7 if {'torch', 'hydra', 'yaml'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_exists_and_no_other():
    assert all(getattr(sam_runner, name) is not None for name in sam_runner.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SAM'"):
        sam_runner.SAM  # noqa: B018


def test_a_run_trained_from_python_is_read_again(tmp_path):
    run = sam_runner.train([*TINY, "optimizer=sam", "rho=0.1", f"run_dir={tmp_path / 'run'}"])
    assert run.result["status"] == "finished"
    assert run.config.optimizer.rho == 0.1
    again = sam_runner.load_run(tmp_path / "run")
    assert again.config == run.config
    assert again.final == run.final
    assert again.metrics["test/accuracy"].dropna().iloc[-1] == run.final["test/accuracy"]
    network = again.model()
    assert not network.training
    (checkpoint,) = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[-1:]
    saved = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    (row,) = sam_runner.load_results(tmp_path).to_dict("records")
    assert row["rho"] == 0.1
    assert row["test/accuracy"] == run.final["test/accuracy"]


def test_two_runs_without_a_name_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {sam_runner.train([*TINY, "epochs=1"]).folder for _ in range(2)}
    assert len(folders) == 2


def test_invalid_settings_raise_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"rho=-1.* is out of range"):
        sam_runner.train(["optimizer=sam", "rho=-1"])
    with pytest.raises(InputError, match="holds no run"):
        sam_runner.load_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_mistakes_and_settings_of_an_earlier_run_are_read_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = sam_runner.train([*TINY, "epochs=1", "seed=3", "run_dir=first"])
    again = sam_runner.train(["config=first", "run_dir=second"])
    assert (again.config.seed, again.final) == (3, first.final)
    with pytest.raises(InputError, match="unknown key rhoo\n  did you mean rho"):
        sam_runner.train(["rhoo=1"])
    with pytest.raises(InputError, match="-m is a flag of sam-train"):
        sam_runner.train(["-m", "seed=0,1"])


def test_what_is_not_there_is_said(tmp_path):
    run = sam_runner.train([*TINY, "epochs=1", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match="'newest' is not known\n  accepted: last, best"):
        run.model("newest")
    (run.folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"has not begun to train, or the file was removed\n.*sam-train resume="):
        sam_runner.load_run(run.folder).metrics  # noqa: B018


def test_a_file_with_aliases_is_refused_in_python_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text("# @package _global_\nlr: &rate 0.1\nrho: *rate\n")
    code = f"import sam_runner; sam_runner.train(['experiment=own'], config_dir={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "YAML aliases are not accepted: *rate" in done.stderr
