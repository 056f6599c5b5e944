"""What only a CUDA device can show; SAM_RUNNER_TEST_DEVICE=cpu (make gpu DEVICE=cpu) rehearses all but the waiting."""

import json

import pytest
import torch
from torch.nn import functional as F

from sam_runner.objective import Batch, Objective
from sam_runner.sam import SamStep
from tests.commands import invoke
from tests.oracles.curves import CURVES, losses
from tests.test_precision import SCALE, build, everything, network, poison, same

pytestmark = pytest.mark.gpu


def batch_on(device, seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(16, 1, 8, 8, generator=generator).to(device), (torch.arange(16) % 5).to(device))


@pytest.mark.parametrize("name", CURVES)
def test_float64_follows_the_frozen_curve_on_the_device(name, device):
    frozen = losses(name)
    measured = losses(name, device=device.type)
    assert torch.allclose(torch.tensor(measured), torch.tensor(frozen), rtol=0, atol=1e-8)


@pytest.mark.parametrize("number_of_pass", [1, 2])
def test_an_overflow_changes_nothing_and_halves_the_scale(number_of_pass, device):
    step = build(device.type)
    step(batch_on(device, 1), 0.1)
    before = everything(step)
    poison(step, number_of_pass, float("inf"))
    assert step(batch_on(device, 2), 0.1).skipped is True
    assert same(before, everything(step))
    assert step.objective.scaler.get_scale() == SCALE / 2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"group_size": 8, "grad_clip": 1.0}, {"p": 3.0}])
def test_the_step_never_waits_for_the_device(dtype, options, device):
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = SamStep(Objective(model, F.cross_entropy, autocast_dtype=dtype), optimizer, **options)
    first, second = batch_on(device, 1), batch_on(device, 2)
    step(first, 0.1)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        stats = step(second, 0.1)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(stats.loss_perturbed)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_digits_are_learnt(precision, device, tmp_path, monkeypatch, capsys):
    options = [] if device.type == "cuda" else ["max_steps=2"]
    arguments = ["optimizer=sam", f"precision={precision}", f"device={device.type}", *options, "run_dir=run"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    final = json.loads((tmp_path / "run" / "result.json").read_text())["final"]
    assert final["test/accuracy"] >= (0.98 if device.type == "cuda" else 0.0)
    assert final["train/loss_gap"] != 0
