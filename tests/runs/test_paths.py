"""A run stores absolute paths: it is evaluated and continued from every folder."""

import os
import shutil

import numpy as np
import pytest
import torch

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.runs.folder import read_config
from tests.helpers import TINY, config_of, invoke, train_tiny, write_image_folder
from tests.training.test_resume import read_metrics, stop_after

OPTIONS = (
    "data=image_folder", "data.root=images", "data.image_size=8", "noise=relabelled", "noise.file=labels.npy",
    "model.weights=start.pt", "batch_size=16", "epochs=2", "device=cpu", "model.width=4",
)  # fmt: skip


@pytest.fixture
def start_folder(tmp_path):
    """Folder with images, labels and initial weights, in which runs are started."""
    folder = tmp_path / "start"
    write_image_folder(folder / "images")
    np.save(folder / "labels.npy", np.arange(64) % 2)
    teacher = train_tiny(folder / "teacher", "max_steps=1", "data.channels=3", "data.num_classes=2")
    torch.save(torch.load(next(teacher.glob("checkpoints/*.pt")), weights_only=True)["model"], folder / "start.pt")
    (tmp_path / "other").mkdir()
    return folder


def evaluate(monkeypatch, capsys, folder, *arguments):
    return invoke(monkeypatch, capsys, folder, *arguments, entry=evaluate_command.main)


def test_sam_eval_reads_the_data_of_the_run_from_every_folder(start_folder, tmp_path, monkeypatch, capsys):
    run, other = start_folder / "run", tmp_path / "other"
    assert invoke(monkeypatch, capsys, start_folder, *OPTIONS, "run_dir=run").returncode == 0
    config = read_config(run)
    assert config.data.root == str(start_folder / "images")
    assert config.noise.file == str(start_folder / "labels.npy")
    assert config.model.weights == str(start_folder / "start.pt")
    expected = evaluate(monkeypatch, capsys, start_folder, run)
    assert len([line for line in expected.stdout.splitlines() if line.startswith("test/")]) == 3
    (other / "images").mkdir()  # a folder of the same name in the working folder is not read
    (start_folder / "start.pt").unlink()  # the checkpoint holds the weights
    assert evaluate(monkeypatch, capsys, other, run).stdout == expected.stdout
    assert evaluate(monkeypatch, capsys, other, run, "--relabel", "new.npy").returncode == 0
    assert (other / "new.npy").is_file()
    (start_folder / "labels.npy").unlink()
    missing = evaluate(monkeypatch, capsys, other, run)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert f"{start_folder / 'labels.npy'} cannot be read" in missing.stderr


def test_a_run_is_continued_from_another_folder(start_folder, tmp_path, monkeypatch, capsys):
    run, other = start_folder / "run", tmp_path / "other"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert invoke(patch, capsys, start_folder, *OPTIONS, f"run_dir={run}").returncode == 75
    before = (run / "config.yaml").read_bytes()
    missing = invoke(monkeypatch, capsys, other, *OPTIONS, f"run_dir={run}")
    assert missing.returncode == 2
    assert "data.root=images is not a folder" in missing.stderr
    for name in ("images", "labels.npy"):  # the same data in another place
        shutil.move(start_folder / name, other / name)
    weights = f"model.weights={start_folder / 'start.pt'}"
    refused = invoke(monkeypatch, capsys, other, *OPTIONS, f"run_dir={run}")
    assert refused.returncode == 2
    assert f"model.weights: {start_folder / 'start.pt'} -> {other / 'start.pt'}" in refused.stderr
    assert (run / "config.yaml").read_bytes() == before
    assert invoke(monkeypatch, capsys, other, *OPTIONS, weights, f"run_dir={run}").returncode == 0
    assert read_config(run).data.root == str(other / "images")
    assert read_config(run).noise.file == str(other / "labels.npy")
    assert invoke(monkeypatch, capsys, other, *OPTIONS, weights, "run_dir=whole").returncode == 0
    assert read_metrics(run) == read_metrics(other / "whole")


def test_a_finished_run_is_told_where_its_data_are_now(start_folder, tmp_path, monkeypatch, capsys):
    run, other = start_folder / "run", tmp_path / "other"
    assert invoke(monkeypatch, capsys, start_folder, *OPTIONS, "run_dir=run").returncode == 0
    expected = evaluate(monkeypatch, capsys, other, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "config.yaml"}
    for name in ("images", "labels.npy"):
        shutil.move(start_folder / name, other / name)
    assert evaluate(monkeypatch, capsys, other, run).returncode == 2
    told = invoke(monkeypatch, capsys, other, f"resume={run}", "data.root=images", "noise.file=labels.npy")
    assert told.returncode == 0 and "already finished" in told.stdout
    assert f"data.root changed, {start_folder / 'images'} -> {other / 'images'}" in told.stdout
    assert evaluate(monkeypatch, capsys, other, run).stdout.endswith(expected.stdout)
    assert expected.stdout.startswith("test/accuracy")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("weights", ["torchvision", "torchvision:IMAGENET1K_V1", "timm", None])
def test_names_of_published_weights_are_no_paths(weights):
    config = config_of(*TINY, *([] if weights is None else [f"model.weights={weights}"]))
    assert config.with_absolute_paths().model.weights == weights


@pytest.mark.parametrize("path", ["w.pt", "./w.pt", "a/../w.pt", "~/w.pt"])
def test_paths_become_absolute_and_the_home_folder_is_expanded(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = config_of(*TINY, f"model.weights='{path}'").with_absolute_paths()
    assert config.model.weights == os.path.join(tmp_path, "w.pt")
    assert config.with_absolute_paths() == config
