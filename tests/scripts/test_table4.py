"""scripts/table4.py: cells that share a GPU have a server of MPS of their own, where there is one."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def table4(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "table4", raising=False)
    import table4

    return table4


def install(folder, monkeypatch, code):
    """A control program that notes how it is called, and ends with `code`."""
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(
        f'#!/bin/sh\necho "$* $CUDA_MPS_PIPE_DIRECTORY" $([ "$1" ] || cat) >> {folder}/calls\nexit {code}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "calls"


def test_the_server_is_started_and_ended(table4, tmp_path, monkeypatch):
    calls = install(tmp_path, monkeypatch, 0)
    with suppress(KeyboardInterrupt), table4.side_by_side(True) as environment:
        pipes = environment["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(pipes).is_dir()
        assert calls.read_text() == f"-d {pipes}\n"
        raise KeyboardInterrupt
    assert calls.read_text().splitlines()[1] == f" {pipes} quit"
    assert not Path(pipes).exists()


@pytest.mark.parametrize(("wanted", "code", "called"), [(True, 1, True), (False, 0, False)])
def test_cells_take_turns_without_it(table4, tmp_path, monkeypatch, wanted, code, called):
    calls = install(tmp_path, monkeypatch, code)
    with table4.side_by_side(wanted) as environment:
        assert environment == {}
    assert calls.is_file() == called


def test_a_server_that_does_not_answer_is_noticed(table4):
    assert not table4.works({"CUDA_VISIBLE_DEVICES": "", "CUDA_MPS_PIPE_DIRECTORY": "/nowhere"})
