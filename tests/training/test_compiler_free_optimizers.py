"""A run without torch.compile does not import the compiler, and its optimizer computes the same as torch's."""

import importlib.util
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch.optim.optimizer import _use_grad_for_differentiable

from sam_runner.training.compiler_free_optimizers import avoid_compiler_import
from tests.helpers import TINY

TRAIN = """
import json, sys
from sam_runner.commands.train import train
arguments = json.loads(sys.argv[1])
codes = [train(arguments), train([*arguments, "epochs=2"])]  # the second call loads a checkpoint
print(json.dumps([codes, sorted({"torch._dynamo", "sympy", "triton"} & set(sys.modules))]))
"""


@pytest.mark.parametrize("base", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_run_does_not_import_the_compiler(tmp_path, base):
    words = [*TINY, "epochs=1", f"run_dir={tmp_path / 'run'}", "optimizer=sam", f"optimizer/base={base}", "compile=off"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(words)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0], []]


def import_again(name):
    """Return a new copy of an optimizer class, without the changes of `avoid_compiler_import`."""
    spec = importlib.util.spec_from_file_location("torch.optim.copy", inspect.getfile(getattr(torch.optim, name)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def train_cubic(kind, **options):
    """Weights after four steps on the loss x^3."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(3))]
    optimizer = kind([{"params": weights[:1]}], lr=0.1, weight_decay=0.01, **options)
    optimizer.add_param_group({"params": weights[1:], "lr": 0.01})
    for _ in range(4):
        optimizer.zero_grad()
        sum((weight**3).sum() for weight in weights).backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return torch.cat([weight.detach().flatten() for weight in weights])


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9, "nesterov": True}), ("Adam", {})])
def test_the_weights_are_those_of_torch(name, options):
    original, changed = import_again(name), import_again(name)
    avoid_compiler_import(changed)
    assert changed.step.__code__ is not original.step.__code__
    assert torch.equal(train_cubic(changed, **options), train_cubic(original, **options))


@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_are_recorded_only_with_differentiable(differentiable):
    recorded = []

    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"differentiable": differentiable})

        @_use_grad_for_differentiable
        def step(self, closure=None):
            """Record the mode."""
            recorded.append(torch.is_grad_enabled())
            return 7

    avoid_compiler_import(Own)
    assert Own.step.__doc__ == "Record the mode."
    optimizer = Own([torch.nn.Parameter(torch.zeros(1))])
    optimizer.register_step_post_hook(lambda *_: recorded.append("hook"))
    with torch.no_grad():
        assert optimizer.step() == 7
        assert not torch.is_grad_enabled()
    assert recorded == [differentiable, "hook"]


def test_a_step_without_torchs_wrapper_is_not_changed():
    class Own(torch.optim.Optimizer):
        def step(self, closure=None):
            return None

    before = Own.step
    avoid_compiler_import(Own)
    assert Own.step is before


def test_a_torch_without_the_wrappers_is_left_as_it_is(monkeypatch):
    def state_dict(self):
        return {}

    monkeypatch.setattr(torch.optim.Optimizer, "state_dict", state_dict)
    kind = type("Plain", (torch.optim.Optimizer,), {"step": lambda self: None})
    step = kind.step
    avoid_compiler_import(kind)
    assert kind.step is step and vars(state_dict) == {}
