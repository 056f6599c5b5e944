"""Recording and replaying a step, on the CPU with a recorder that calls the function again.

tests/scripts/checks/test_gpu.py records CUDA graphs.
"""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.sam.batch import Batch
from sam_runner.sam.cuda_graph import NUM_WARM_UP_STEPS, CapturedStep, EagerRecorder
from sam_runner.sam.methods import KStep, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep

SIZES = [16, 16, 16, 16, 16, 7, 16, 16, 7, 7, 7, 7]


def batches():
    generator = torch.Generator().manual_seed(5)
    return [Batch(torch.randn(size, 1, 8, 8, generator=generator), torch.arange(size) % 5) for size in SIZES]


def network(dropout=0.0):
    """Return a network without a bias before batch norm: its gradient is rounding noise, which Adam would amplify."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)
    return nn.Sequential(*layers, nn.Linear(6 * 36, 5))


def make_step(model, optimizer="SGD", fused=True, **options):
    momentum = {"momentum": 0.9} if optimizer == "SGD" else {}
    base = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1, **momentum, **({"fused": True} if fused else {}))
    dtype = options.pop("dtype", None)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    return SamStep(Objective(model, F.cross_entropy, autocast_dtype=dtype, scaler=scaler), base, **options)


def follow(step, radii):
    """Return losses and norms of steps, each with another learning rate and radius."""
    curve = []
    for number, (batch, rho) in enumerate(zip(batches(), radii, strict=True)):
        for group in step.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + number)
        stats = step(batch, rho)
        curve.append([float(stats.loss), float(stats.loss_perturbed), float(stats.grad_norm), float(stats.eps_norm)])
    return torch.tensor(curve)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize(
    "options", [{}, {"group_size": 5, "grad_clip": 1.0}, {"method": Sam(3.0)}, {"method": KStep(2)}]
)
def test_replayed_steps_equal_plain_ones_as_rate_and_radius_change(optimizer, options):
    radii = [0.01 * (1 + number) for number in range(len(SIZES))]
    model = network(0.0)
    plain, ours = make_step(copy.deepcopy(model), optimizer, **options), make_step(model, optimizer, **options)
    captured = CapturedStep(ours, EagerRecorder())
    assert torch.allclose(follow(captured, radii), follow(plain, radii), rtol=1e-4, atol=1e-5)
    for a, b in zip(model.parameters(), plain.objective.params, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert {size_of(key) for key in captured._recordings} == {16, 7}
    assert all(isinstance(group["lr"], float) for group in captured.optimizer.param_groups)
    assert captured.optimizer.state_dict().keys() == plain.optimizer.state_dict().keys()


def test_steps_of_one_and_of_two_passes_are_recorded_apart():
    radii = [0.0, 0.05] * (len(SIZES) // 2)
    model = network(0.0)
    plain, captured = make_step(copy.deepcopy(model)), CapturedStep(make_step(model), EagerRecorder())
    for _ in range(2):
        assert torch.allclose(follow(captured, radii), follow(plain, radii), rtol=1e-4, atol=1e-5)
    kinds = {(size_of(key), key[2]) for key in captured._recordings}
    assert kinds == {(16, True), (16, False), (7, True), (7, False)}


def size_of(key):
    """Return the number of examples of a recording."""
    ((_, kinds), _, _) = key
    return kinds[0][0][0]


class Counting(EagerRecorder):
    """Counts runs, recordings and replays; recording does not run the function."""

    def __init__(self):
        self.calls = {"run": 0, "record": 0, "replay": 0}

    def run(self, call):
        self.calls["run"] += 1
        return call()

    def record(self, call):
        self.calls["record"] += 1

        def replay():
            self.calls["replay"] += 1
            return call()

        return replay


def test_every_step_trains_once():
    recorder = Counting()
    model = network(0.0)
    captured = CapturedStep(make_step(model), recorder)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    batch = batches()[0]
    for _ in range(10):
        captured(batch, 0.1)
    assert recorder.calls == {"run": NUM_WARM_UP_STEPS, "record": 1, "replay": 10 - NUM_WARM_UP_STEPS}
    assert len(passes) == 20


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_step(network(0.0), dtype=torch.float16), "loss scaler"),
        (lambda: make_step(network(0.0), method=SecondOrder()), "second-order"),
        (lambda: make_step(network(0.0), "RMSprop", fused=False), "RMSprop"),
        (lambda: make_step(network(0.0), fused=False), "SGD reads"),
        (lambda: make_step(network(0.5)), "random numbers"),
    ],
)
def test_what_cannot_be_recorded_is_said_and_trained_all_the_same(make, reason, caplog):
    torch.manual_seed(1)
    expected = follow(make(), [0.1] * len(SIZES))
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING):
        measured = follow(CapturedStep(make(), EagerRecorder()), [0.1] * len(SIZES))
    assert torch.equal(measured, expected)
    assert len(caplog.records) == 1
    assert reason in caplog.text
    assert "run without a graph" in caplog.text


def test_a_recording_that_fails_is_said_and_trained_all_the_same(caplog):
    class Failing(EagerRecorder):
        def record(self, call):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = network(0.0)
    expected = follow(make_step(copy.deepcopy(model)), [0.1] * len(SIZES))
    measured = follow(CapturedStep(make_step(model), Failing()), [0.1] * len(SIZES))
    assert torch.equal(measured, expected)
    assert "not permitted when stream is capturing" in caplog.text


def test_without_a_cuda_device_it_says_so(caplog):
    captured = CapturedStep(make_step(network()))
    assert caplog.text == ""  # a dry run builds the step and must not warn
    for batch in batches()[:2]:
        captured(batch, 0.1)
    assert len(caplog.records) == 1
    assert "it needs a CUDA device, this is cpu" in caplog.text
