"""What only a CUDA device can show; SAM_RUNNER_TEST_DEVICE=cpu (make gpu DEVICE=cpu) rehearses all but the waiting."""

import json

import pytest
import torch
from torch.nn import functional as F

from sam_runner.config.data import AugmentConfig
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation
from sam_runner.sam import cuda_graph
from sam_runner.sam.batch import Batch
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.methods import KStep, RandomDirection, Sam
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from tests.helpers import invoke
from tests.oracles.curves import CURVES, losses
from tests.sam import test_cuda_graph as capture_tests
from tests.sam import test_family as family_tests
from tests.sam.test_precision import SCALE, build, everything, network, poison, same

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
@pytest.mark.parametrize(
    "options", [{}, {"group_size": 8, "grad_clip": 1.0}, {"method": Sam(3.0)}, {"method": RandomDirection(1)}]
)
def test_the_step_never_waits_for_the_device(dtype, options, device):
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)  # as sam-train builds it
    step = SamStep(Objective(model, F.cross_entropy, autocast_dtype=dtype), optimizer, **options)
    first, second = batch_on(device, 1), batch_on(device, 2)
    step(first, 0.1, 0)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        stats = step(second, 0.1, 1)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(stats.loss_perturbed)


def test_a_random_direction_is_drawn_on_the_device_and_repeats(device):
    found = []
    for seed, number in ((1, 0), (1, 0), (1, 1), (2, 0)):
        model = network().to(device)
        step = SamStep(Objective(model, F.cross_entropy), torch.optim.SGD(model.parameters()), RandomDirection(seed))
        stats = step(batch_on(device, 1), 0.3, number)
        assert float(stats.eps_norm) == pytest.approx(0.3, rel=1e-6)
        found.append(float(stats.loss_perturbed))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def captured(step, device):
    return CapturedStep(step, None if device.type == "cuda" else EagerRecorder())


@pytest.mark.parametrize("name", CURVES)
def test_a_captured_step_follows_the_frozen_curve(name, device):
    """The learning rate is read from a float32 tensor."""
    steps = []

    def route(step):
        steps.append(captured(step, device))
        return steps[0]

    measured = losses(name, device=device.type, fused=True, route=route)
    assert torch.allclose(torch.tensor(measured), torch.tensor(losses(name)), rtol=0, atol=1e-6)
    assert len(steps[0]._recordings) == 1


def family_path(name, device, wrap=lambda step: step):
    step = wrap(family_tests.build(family_tests.METHODS[name](), model=family_tests.mlp().to(device), momentum=0.9))
    return torch.stack(family_tests.follow(step)).cpu(), step


@pytest.mark.parametrize("name", [name for name in family_tests.METHODS if name not in ("esam", "random_sam")])
def test_a_method_of_the_family_trains_as_on_a_cpu(name, device):
    """Esam and random_sam draw numbers on the device, which are others than a CPU's."""
    assert torch.allclose(family_path(name, device)[0], family_path(name, "cpu")[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", family_tests.METHODS)
def test_a_captured_method_of_the_family_trains_as_an_eager_one(name, device, monkeypatch):
    monkeypatch.setattr(cuda_graph, "NUM_WARM_UP_STEPS", 1)
    eager, _ = family_path(name, device)
    recorded, step = family_path(name, device, lambda step: captured(step, device))
    assert torch.allclose(recorded, eager, rtol=0, atol=1e-6)
    assert bool(step._recordings) == (not family_tests.METHODS[name]().capture_blocker)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    "options", [{}, {"group_size": 8, "grad_clip": 1.0}, {"method": Sam(3.0)}, {"method": KStep(2)}]
)
def test_a_captured_network_trains_as_an_eager_one(optimizer, options, device):
    curves = []
    for wrap in (lambda step: step, lambda step: captured(step, device)):
        model = capture_tests.network().to(device).to(memory_format=torch.channels_last)
        base = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, fused=True)
        objective = Objective(model, F.cross_entropy, autocast_dtype=torch.bfloat16)
        step = wrap(SamStep(objective, base, **options))
        curve = []
        for number in range(12):
            base.param_groups[0]["lr"] = 0.01 / (1 + number)
            stats = step(batch_on(device, number), 0.02 * (1 + number))
            curve.append([float(stats.loss), float(stats.loss_perturbed)])
        curves.append(torch.tensor(curve))
        assert int(model[1].num_batches_tracked) == 12
    assert torch.allclose(*curves, rtol=0, atol=2e-2)
    assert len(step._recordings) == 1


def test_batches_prepared_ahead_are_those_of_a_cpu(device):
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = make_image_set(images, torch.arange(50) % 10, tuple("abcdefghij"))
    options = {
        "batch_size": 8, "normalisation": Normalisation.from_images(images), "seed": 1, "channels_last": True,
        "augmentation": AugmentConfig(pad=2, flip=True, cutout=3),
    }  # fmt: skip
    loaders = [ImageLoader(data, device=where, **options) for where in (torch.device("cpu"), device)]
    for epoch in (0, 1):
        pairs = zip(*(loader.epoch(epoch) for loader in loaders), strict=True)
        for expected, examples in pairs:
            assert examples.images.device.type == device.type
            assert torch.allclose(examples.images.cpu(), expected.images, atol=1e-6)
            assert torch.equal(examples.labels.cpu(), expected.labels)


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_deterministic_runs_repeat_to_the_bit(optimizer, device, tmp_path, monkeypatch, capsys):
    options = ["epochs=2", "model=resnet20", "augment=cutout", "augment.pad=2", "augment.cutout=2"]
    options += [] if device.type == "cuda" else ["max_steps=2"]
    rows = []
    for name in ("first", "second"):
        arguments = [
            f"optimizer={optimizer}",
            *(["deterministic=true"] if device.type == "cuda" else []),
            f"device={device.type}",
            *options,
            f"run_dir={name}",
        ]
        assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
        rows.append((tmp_path / name / "metrics.jsonl").read_bytes())
    assert rows[0] == rows[1]
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mode", ["default", "graph", "capture"])
def test_compiled_runs_learn_the_digits(mode, device, tmp_path, monkeypatch, capsys):
    options = [] if device.type == "cuda" else ["max_steps=6", "model.width=4"]
    arguments = ["optimizer=sam", f"compile={mode}", f"device={device.type}", *options, "run_dir=run"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    final = json.loads((tmp_path / "run" / "result.json").read_text())["final"]
    assert final["test/accuracy"] >= (0.98 if device.type == "cuda" else 0.0)
    log = (tmp_path / "run" / "run.log").read_text()
    assert ("cannot be recorded" in log) is (mode in ("graph", "capture") and device.type != "cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_digits_are_learnt(precision, device, tmp_path, monkeypatch, capsys):
    options = [] if device.type == "cuda" else ["max_steps=2"]
    arguments = ["optimizer=sam", f"precision={precision}", f"device={device.type}", *options, "run_dir=run"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    final = json.loads((tmp_path / "run" / "result.json").read_text())["final"]
    assert final["test/accuracy"] >= (0.98 if device.type == "cuda" else 0.0)
    assert final["train/loss_gap"] != 0
