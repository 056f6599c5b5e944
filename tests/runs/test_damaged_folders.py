"""Run folders that something else than the run has changed: scripts/reliability/fuzz.py found these."""

import json
import shutil

import pytest

from sam_runner.commands import report as report_command
from sam_runner.commands import status as status_command
from sam_runner.runs.environment import read_environment
from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import read_status
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.utils.files import read_json
from tests.helpers import TINY, invoke, read_rows, train_tiny

OPTIONS = (*TINY, "optimizer=sam", "checkpoint.every_steps=1", "log_every=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("finished") / "run", "optimizer=sam")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed after its eighth step."""
    original = CheckpointFolder.save

    def save(self, step, *arguments, **keywords):
        path = original(self, step, *arguments, **keywords)
        if step == 8:
            raise KeyboardInterrupt
        return path

    folder = tmp_path_factory.mktemp("stopped") / "run"
    CheckpointFolder.save = save
    try:
        with pytest.raises(KeyboardInterrupt):
            train_tiny(folder, *OPTIONS)
    finally:
        CheckpointFolder.save = original
    return folder


def continue_run(stopped, tmp_path, monkeypatch, capsys, damage):
    shutil.copytree(stopped, tmp_path / "run")
    damage(tmp_path / "run")
    return invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=run")


def read_steps(folder):
    return [row["step"] for row in read_rows(folder)]


def test_a_continued_run_says_that_rows_are_lost_and_its_rows_stay_whole(stopped, tmp_path, monkeypatch, capsys):
    def cut(folder):
        content = (folder / "metrics.jsonl").read_bytes()
        (folder / "metrics.jsonl").write_bytes(content[: content.index(b"\n", len(content) // 2) + 30])

    done = continue_run(stopped, tmp_path, monkeypatch, capsys, cut)
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl lacks rows that were logged before the checkpoint" in done.stdout
    steps = read_steps(tmp_path / "run")
    assert steps[-4:] == [9, 10, 11, 12]
    assert steps[:-4] == list(range(1, len(steps) - 3))


def test_a_row_that_is_no_row_is_reported(stopped, tmp_path, monkeypatch, capsys):
    def overwrite(folder):
        content = (folder / "metrics.jsonl").read_bytes()
        (folder / "metrics.jsonl").write_bytes(b"\xff" + content[1:])

    done = continue_run(stopped, tmp_path, monkeypatch, capsys, overwrite)
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl lacks rows" in done.stdout


def test_a_run_that_nothing_has_changed_reports_nothing(stopped, tmp_path, monkeypatch, capsys):
    done = continue_run(stopped, tmp_path, monkeypatch, capsys, lambda _: None)
    assert done.returncode == 0, done.stderr
    assert "lacks rows" not in done.stdout
    assert read_steps(tmp_path / "run") == list(range(1, 13))


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl", "checkpoints/step-00000007.json"])
def test_a_folder_in_place_of_a_file_is_one_message(name, stopped, tmp_path, monkeypatch, capsys):
    def replace(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    done = continue_run(stopped, tmp_path, monkeypatch, capsys, replace)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: run/{name} cannot be used: Is a directory\n  move it away")
    (tmp_path / "run" / name).rmdir()
    again = invoke(monkeypatch, capsys, tmp_path, *OPTIONS, "run_dir=run")
    assert again.returncode == 0, again.stderr


def change_entries(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_entries_of_a_wrong_type_are_read_as_if_they_were_not_there(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    expected = read_finished_result(folder)
    change_entries(folder / "result.json", images_per_second={}, best=[], step=float("nan"), data={"train": 1})
    change_entries(folder / "status.json", from_epoch="x", seconds=[], host=None)
    change_entries(folder / "environment.json", packages="x", command={})
    result = read_finished_result(folder)
    assert result["final"] == expected["final"]
    assert result["best"] == {}
    assert not {"images_per_second", "step", "data"} & result.keys()
    assert not {"from_epoch", "seconds", "host"} & read_status(folder).keys()
    assert not {"packages", "command"} & read_environment(folder).keys()


def test_the_commands_read_such_files(finished, tmp_path, monkeypatch, capsys):
    for number in range(2):
        shutil.copytree(finished, tmp_path / "runs" / str(number))
    folder = tmp_path / "runs" / "1"
    change_entries(folder / "result.json", images_per_second={"": None}, training_seconds=float("inf"))
    change_entries(folder / "status.json", from_epoch={}, seconds="x")
    change_entries(folder / "environment.json", packages="2026")
    words = {status_command.main: [folder], report_command.main: ["runs"]}
    for entry, arguments in words.items():
        done = invoke(monkeypatch, capsys, tmp_path, *arguments, entry=entry)
        assert done.returncode == 0, done.stderr
    again = invoke(monkeypatch, capsys, tmp_path, f"resume={folder}")
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path):
    (tmp_path / "result.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "result.json") is None
