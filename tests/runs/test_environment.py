"""environment.json: what a run was trained with."""

import os
import subprocess

import pytest

from sam_runner.data.files.jpeg import describe_decoders
from sam_runner.runs import environment
from sam_runner.runs.start import start_run
from sam_runner.utils.files import read_json
from tests.helpers import config_of, train_tiny, write_image_folder


@pytest.mark.parametrize(
    ("changed", "expected"), [("docs/page.md", False), ("sam_runner/step.py", True), ("conf/a.yaml", True)]
)
def test_only_changes_of_the_code_and_its_options_count(tmp_path, monkeypatch, changed, expected):
    for name in ("sam_runner/runs", "docs", "conf", "run"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / changed).write_text("new")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "sam_runner" / "runs" / "environment.py"))
    environment.write_environment(tmp_path / "run", "cpu", "fp32")
    assert read_json(tmp_path / "run" / "environment.json")["git_changes"] is expected


def test_git_writes_nothing_and_changes_are_unknown_if_it_takes_too_long(tmp_path, monkeypatch):
    """Git would write what it finds into its index, and leave the index locked if it is killed meanwhile."""
    (tmp_path / "sam_runner").mkdir()
    (tmp_path / "sam_runner" / "step.py").write_text("new")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    os.utime(tmp_path / "sam_runner" / "step.py", (1, 1))
    index = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "sam_runner" / "environment.py"))
    environment.write_environment(tmp_path, "cpu", "fp32")
    assert read_json(tmp_path / "environment.json")["git_changes"] is True
    assert (tmp_path / ".git" / "index").read_bytes() == index

    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(environment.subprocess, "run", run)
    environment.write_environment(tmp_path, "cpu", "fp32")
    assert read_json(tmp_path / "environment.json")["git_changes"] is None


def test_another_decoder_of_images_is_named_when_a_run_goes_on(tmp_path):
    environment.write_environment(tmp_path, "cpu", "fp32", "torchvision 0.29, pillow 13")
    assert environment.compare_environment(tmp_path, "cpu", "fp32", "torchvision 0.29, pillow 13") == []
    changed = environment.compare_environment(tmp_path, "cpu", "fp32", "pillow 13")
    assert changed == ["image_decoders torchvision 0.29, pillow 13 -> pillow 13"]
    environment.write_environment(tmp_path, "cpu", "fp32")  # a run without image files, or of an earlier version
    assert environment.compare_environment(tmp_path, "cpu", "fp32", "pillow 13") == []


def test_a_run_records_what_decodes_its_image_files(tmp_path):
    root = write_image_folder(tmp_path / "images")
    words = ("data=image_folder", f"data.root={root}", "model.width=4", "batch_size=32", "epochs=1", "device=cpu")
    start_run(config_of(*words, f"run_dir={tmp_path / 'files'}"))
    assert read_json(tmp_path / "files" / "environment.json")["image_decoders"] == describe_decoders()
    train_tiny(tmp_path / "other", "epochs=1")
    assert read_json(tmp_path / "other" / "environment.json")["image_decoders"] is None
