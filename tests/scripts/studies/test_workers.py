"""scripts/studies/workers.py: processes that share a GPU use an MPS server where there is one."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.studies import workers


def install_control_program(folder, monkeypatch, code):
    """Install an nvidia-cuda-mps-control that logs its calls and ends with `code`. Returns the path of the log."""
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(
        f'#!/bin/sh\necho "$* $CUDA_MPS_PIPE_DIRECTORY" $([ "$1" ] || cat) >> {folder}/calls\nexit {code}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "calls"


def test_the_mps_server_is_started_and_ended(tmp_path, monkeypatch):
    calls = install_control_program(tmp_path, monkeypatch, 0)
    monkeypatch.setattr(workers, "reaches_gpu", lambda _: True)
    with suppress(KeyboardInterrupt), workers.mps_server(True) as environment:
        pipes = environment["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipes).is_dir()
        assert calls.read_text() == f"-d {pipes}\n"
        raise KeyboardInterrupt
    assert calls.read_text().splitlines()[1] == f" {pipes} quit"
    assert not Path(pipes).exists()


@pytest.mark.parametrize(
    ("wanted", "code", "answers", "num_calls"), [(True, 1, True, 1), (True, 0, False, 2), (False, 0, True, 0)]
)
def test_runs_take_turns_without_a_server(tmp_path, monkeypatch, wanted, code, answers, num_calls):
    calls = install_control_program(tmp_path, monkeypatch, code)
    monkeypatch.setattr(workers, "reaches_gpu", lambda _: answers)
    with workers.mps_server(wanted) as environment:
        assert environment == {}
    assert len(calls.read_text().splitlines() if calls.is_file() else []) == num_calls


def test_a_server_of_the_environment_is_used_as_it_is(tmp_path, monkeypatch):
    calls = install_control_program(tmp_path, monkeypatch, 0)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    with workers.mps_server(True) as environment:
        assert environment == {}
    assert not calls.exists()


def test_a_server_that_does_not_answer_is_noticed():
    assert not workers.reaches_gpu({"CUDA_VISIBLE_DEVICES": "", "CUDA_MPS_PIPE_DIRECTORY": "/nowhere"})
