"""Runs whose paths are relative, used from another folder than they were started in."""

import json
import shutil

import numpy as np
import pytest

from sam_runner.commands import evaluate as evaluate_command
from tests.config.test_conf import image_folder
from tests.helpers import invoke
from tests.training.test_resume import logged, stop_after

WORDS = (
    "data=image_folder", "data.root=images", "data.image_size=8", "noise=relabelled", "noise.file=labels.npy",
    "batch_size=16", "epochs=2", "device=cpu", "model.width=4",
)  # fmt: skip


@pytest.fixture
def here(tmp_path):
    """The folder that runs are started in, with images and labels."""
    image_folder(tmp_path / "here" / "images")
    np.save(tmp_path / "here" / "labels.npy", np.arange(64) % 2)
    (tmp_path / "there").mkdir()
    return tmp_path / "here"


def test_sam_eval_finds_the_data_from_any_folder(here, tmp_path, monkeypatch, capsys):
    there, run = tmp_path / "there", f"run_dir={here / 'run'}"
    assert invoke(monkeypatch, capsys, here, *WORDS, "run_dir=run").returncode == 0

    def evaluated(folder, *more):
        return invoke(monkeypatch, capsys, folder, run, *more, entry=evaluate_command.main)

    def metrics(folder):
        return [line for line in evaluated(folder).stdout.splitlines() if line.startswith("test/")]

    expected = metrics(here)
    assert len(expected) == 3
    assert metrics(there) == expected
    (there / "images").mkdir()  # another of that name does not come first
    assert metrics(there) == expected
    relabelled = evaluated(there, "relabel=new.npy")
    assert (relabelled.returncode, (there / "new.npy").is_file()) == (0, True)
    (there / "images").rmdir()
    shutil.move(here / "images", there / "images")  # moved to where the command is given
    assert metrics(there) == expected
    (here / "labels.npy").unlink()
    gone = evaluated(there)
    assert (gone.returncode, gone.stdout) == (2, "")
    assert gone.stderr == (
        f"error: noise.file=labels.npy of the run in {here / 'run'} is not there\n"
        f"  tried: {here / 'labels.npy'}\n  tried: {there / 'labels.npy'}\n"
    )
    (here / "run" / "environment.json").unlink()  # not recorded: as it stands
    assert "labels.npy cannot be read" in evaluated(there).stderr


def test_continued_from_another_folder_it_says_where_to(here, tmp_path, monkeypatch, capsys):
    there, run = tmp_path / "there", f"run_dir={here / 'run'}"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert invoke(patch, capsys, here, *WORDS, run).returncode == 75
    before = (here / "run" / "config.yaml").read_bytes()
    done = invoke(monkeypatch, capsys, there, *WORDS, run)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: data.root=images is not in {there}, but where the run in {here / 'run'} was started\n"
        f"  continue it from there: cd {here}\n"
    )
    assert (here / "run" / "config.yaml").read_bytes() == before
    shutil.copytree(here / "images", there / "images")
    shutil.copy(here / "labels.npy", there)
    assert invoke(monkeypatch, capsys, there, *WORDS, run).returncode == 0  # the same data
    assert invoke(monkeypatch, capsys, here, *WORDS, "run_dir=whole").returncode == 0
    assert logged(here / "run") == logged(here / "whole")
    assert json.loads((here / "run" / "environment.json").read_text())["folder"] == str(there)
