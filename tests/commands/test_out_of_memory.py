"""Memory that the system refuses: one message in every command, also where another error was raised from it."""

import pytest
import torch
from torch import nn

from sam_runner.commands import curvature, evaluate, landscape, sharpness
from sam_runner.commands.inference import export, predict, suspects
from sam_runner.sam.network.second_derivatives import explain_missing_derivative
from sam_runner.utils.errors import InputError, TrainingError, find_memory_error, is_bad_input
from tests.helpers import TINY, invoke, train_tiny

DEVICE = "free some memory, or give another --device"
COMMANDS = {
    "sam-curvature": (curvature.main, ["RUN"], f"give fewer --examples, {DEVICE}"),
    "sam-sharpness": (sharpness.main, ["RUN"], "give fewer --examples"),
    "sam-landscape": (landscape.main, ["RUN"], "give fewer --examples"),
    "sam-eval": (evaluate.main, ["RUN"], DEVICE),
    "sam-predict": (predict.main, ["RUN", "--out", "new.csv"], DEVICE),
    "sam-suspects": (suspects.main, ["RUN", "--out", "new.csv"], DEVICE),
    "sam-export": (export.main, ["RUN", "--format", "safetensors"], "free some memory"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("memory") / "run", "optimizer=sam", "epochs=1")


def allocate_too_much(*_, **__):
    torch.empty(10**15)


def refuse_on_gpu(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("refuse", [allocate_too_much, refuse_on_gpu])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_message(name, refuse, run, tmp_path, monkeypatch, capsys):
    entry, arguments, way_out = COMMANDS[name]
    words = [str(run) if word == "RUN" else word for word in arguments]
    monkeypatch.setattr(nn.Module, "load_state_dict", refuse)
    done = invoke(monkeypatch, capsys, tmp_path, *words, entry=entry)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: out of memory: ")
    assert done.stderr.count("error: ") == 1
    assert way_out in done.stderr
    assert "Traceback" not in done.stderr


def test_the_reason_of_another_error_may_be_memory(tmp_path, monkeypatch, capsys):
    (tmp_path / "large_models.py").write_text(
        "import torch\n\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(10**8, 10**7)\n"
    )
    words = [word for word in TINY if not word.startswith("model.")]
    done = invoke(monkeypatch, capsys, tmp_path, *words, "model._target_=large_models.Net", "run_dir=run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: out of memory: ") and "dry_run=true estimates the memory" in done.stderr


@pytest.mark.parametrize("refuse", [allocate_too_much, refuse_on_gpu])
def test_memory_is_not_taken_for_a_missing_derivative(refuse):
    with pytest.raises(RuntimeError, match="allocate"), explain_missing_derivative("sam-curvature"):
        refuse()
    with pytest.raises(TrainingError), explain_missing_derivative("sam-curvature"):
        raise RuntimeError("derivative for aten::x is not implemented")


def test_lack_of_memory_is_no_bad_input():
    refused = MemoryError("Unable to allocate 8.00 TiB")
    with pytest.raises(InputError) as raised:
        raise InputError("data (my_data.load) fails") from refused
    assert find_memory_error(raised.value) is refused
    assert not is_bad_input(raised.value)
    assert is_bad_input(InputError("lr=-1 is out of range"))
    assert not is_bad_input(TrainingError("the loss is not finite"))
    assert find_memory_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
