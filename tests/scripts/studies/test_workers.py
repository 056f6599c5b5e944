"""scripts/studies/workers.py: processes that share a GPU use an MPS server where there is one; SIGTERM saves runs."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.studies import workers
from tests.helpers import TINY, wait_for

ROOT = Path(workers.__file__).resolve().parents[2]
STUDY = """
import sys
from scripts.studies.workers import get_answer, open_pool, run_commands

if __name__ == "__main__":
    with open_pool(1, float("inf"), share_gpu=False) as pool:
        futures = [pool.submit(run_commands, [["sam-train", *sys.argv[1:], f"run_dir=run{n}"]], n) for n in range(3)]
        print([get_answer(future)[0] for future in futures])
"""


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


def test_at_sigterm_the_run_is_saved_and_no_other_one_starts(tmp_path):
    """Python's resource tracker would warn of semaphores if the signal ended the process itself."""
    (tmp_path / "study.py").write_text(STUDY)
    study = subprocess.Popen(
        [sys.executable, "study.py", *TINY, "optimizer=sgd", "epochs=2000"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: list(tmp_path.glob("run0/checkpoints/*.json")))
    study.send_signal(signal.SIGTERM)
    printed, errors = study.communicate(timeout=90)
    assert (study.returncode, printed, errors) == (75, "[75, 75, 75]\n", "")
    assert json.loads((tmp_path / "run0" / "status.json").read_text())["status"] == "preempted"
    assert [path.name for path in tmp_path.glob("run?")] == ["run0"]
