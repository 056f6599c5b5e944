"""`sam-verify`: every damage is found, and what is good is good."""

import random
import shutil

import pytest
import torch

from sam_runner.commands import verify as verify_command
from sam_runner.commands.verify import verdicts
from sam_runner.training.checkpoints import CheckpointFolder
from tests.helpers import invoke, train_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("verified") / "run", "optimizer=sam", "max_steps=2", "epochs=1")


def checkpoint_of(run):
    return next((run / "checkpoints").glob("*.pt"))


def copied(run, folder, content=None):
    folder.mkdir(exist_ok=True)
    for suffix in (".pt", ".json"):
        shutil.copy(checkpoint_of(run).with_suffix(suffix), folder)
    path = folder / checkpoint_of(run).name
    if content is not None:
        path.write_bytes(content)
    return path


def fault(path):
    ((_, found),) = verdicts([path])
    return found


def test_a_run_a_folder_a_file_and_a_manifest_are_accepted(run, tmp_path, monkeypatch, capsys):
    path = checkpoint_of(run)
    words = [run, run / "checkpoints", path, path.with_suffix(".json")]
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=verify_command.main)
    assert done.returncode == 0
    assert done.stdout == f"good     {path}\n" * 4


def test_damaged_copies_are_named_each_and_the_code_is_2(run, tmp_path, monkeypatch, capsys):
    content = checkpoint_of(run).read_bytes()
    draws = random.Random(0)
    words = [run]
    for number in range(20):
        damaged = bytearray(content)
        bit = draws.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        words.append(copied(run, tmp_path / str(number), bytes(damaged)))
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=verify_command.main)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("good")
    assert all(line.startswith(f"damaged  {path}: ") for line, path in zip(lines[1:], words[1:], strict=True))


@pytest.mark.parametrize("kept", [0, 1, 100, -1000, -1])
def test_a_truncated_file_is_damaged(run, tmp_path, kept):
    path = copied(run, tmp_path, checkpoint_of(run).read_bytes()[:kept])
    assert "bytes, its manifest says" in fault(path)


def test_what_is_missing_is_said(run, tmp_path):
    path = copied(run, tmp_path)
    path.unlink()
    assert "missing" in fault(path)
    path = copied(run, tmp_path)
    path.with_suffix(".json").unlink()
    assert "no manifest" in fault(path)
    assert "no such file" in fault(tmp_path / "nowhere.pt")
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in fault(tmp_path / "empty")


def test_a_file_of_more_than_tensors_is_damaged_although_its_sums_fit(tmp_path):
    path = CheckpointFolder(tmp_path).save(1, {"model": {}, "optimizer": {}, "size": torch.Size([1])}, epoch=1)
    assert "more than tensors" in fault(path)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_usage(words, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=verify_command.main)
    assert "sam-verify [-h]" in done.stdout + done.stderr
    assert done.returncode == (0 if words else 2)
