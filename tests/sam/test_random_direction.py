"""Random directions (Appendix C.5): eps is uniform on the sphere and a function of seed and step number only."""

import itertools
import logging
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from sam_runner.sam.batch import Batch
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.methods import RandomDirection, Sam
from sam_runner.training import loop
from sam_runner.training.builders.run import build_run
from sam_runner.training.state import Progress
from sam_runner.utils.seeding import derive_seed, make_generator
from tests.data.augment.test_mixing import RecordingStep
from tests.helpers import TINY, config_of
from tests.oracles.problems import ONE, Quadratic, batch_of, make_step, mean_output

SHAPES = {"few": (3,), "filters": (4, 2, 3, 3), "many": (30, 20)}
COUNT = sum(math.prod(shape) for shape in SHAPES.values())
RHO = 0.7


class Slope(nn.Module):
    """L(w) = slope * (sum of w) with w = 0, so the second pass is at eps; `seen` has the weights of all passes."""

    def __init__(self, slope=1.0, dtype=torch.float64, layout=torch.contiguous_format):
        super().__init__()
        zeros = {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
        zeros["filters"] = zeros["filters"].contiguous(memory_format=layout)
        self.weights = nn.ParameterDict(zeros)
        self.slope, self.seen = slope, []

    def forward(self, inputs):
        self.seen.append([part.detach().clone() for part in self.weights.values()])
        total = torch.stack([part.sum() for part in self.weights.values()]).sum()
        return (self.slope * total).expand(len(inputs), 1)


def directions(seed=0, numbers=(0,), rho=RHO, model=None, count=1, **options):
    """Return eps of every second pass as rows of an array; the learning rate is 0, so w stays 0."""
    model = model or Slope()
    step = make_step(model, mean_output, lr=0.0, method=RandomDirection(seed), **options)
    for number in numbers:
        measured = step(batch_of([[0.0]] * count), rho, number)
        assert float(measured.eps_norm) == pytest.approx(rho, rel=1e-6)
    passes = [np.concatenate([part.numpy().ravel() for part in parts]) for parts in model.seen]
    return np.array([parts for parts in passes if parts.any()])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("rho", [1e-3, 0.05, 3.0])
def test_its_length_is_rho(rho, dtype, error):
    found = directions(numbers=range(5), rho=rho, model=Slope(dtype=dtype)).astype(np.float64)
    assert np.sqrt((found**2).sum(1)) == pytest.approx(rho, rel=error)


def test_the_step_is_along_the_gradient_there():
    """The gradient of w'Aw/2 at w + eps is A (w + eps), which gives eps; the loss has a closed form."""
    model = Quadratic()
    stats = make_step(model, mean_output, method=RandomDirection(3))(ONE, 0.5, 7)
    gradient = model.w.grad.numpy()
    eps = gradient / (1, 4) - (3, 1)
    assert np.linalg.norm(eps) == pytest.approx(0.5, rel=1e-14)
    assert model.w.tolist() == pytest.approx(np.array((3, 1)) - 0.1 * gradient, abs=1e-14)
    assert float(stats.loss_perturbed) == pytest.approx(0.5 * ((3 + eps[0]) ** 2 + 4 * (1 + eps[1]) ** 2), rel=1e-14)
    assert (float(stats.loss), float(stats.grad_norm)) == pytest.approx((6.5, 5.0), abs=1e-12)


def test_coordinates_have_mean_zero_and_variance_rho_squared_over_d():
    found = directions(numbers=range(60))
    numbers = found * np.sqrt(COUNT) / RHO
    assert abs(numbers.mean()) < 4 / np.sqrt(numbers.size)
    first = 0
    for shape in SHAPES.values():
        part = numbers[:, first : first + math.prod(shape)]
        first += math.prod(shape)
        assert abs((part**2).mean() - 1) < 4 * np.sqrt(2 / part.size), shape
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(numbers.ravel())) < 4 * np.sqrt(24 / numbers.size)


@pytest.mark.parametrize("varied", ["seed", "number"])
def test_directions_of_other_seeds_and_steps_are_independent(varied):
    """The cosine of two uniform directions has mean 0 and variance 1/d."""
    if varied == "seed":
        found = np.concatenate([directions(seed=seed) for seed in range(40)])
    else:
        found = directions(numbers=range(40))
    cosines = np.array([a @ b / RHO**2 for a, b in itertools.combinations(found, 2)])
    assert abs(cosines.mean()) < 4 / np.sqrt(COUNT * len(cosines))
    assert cosines.var() * COUNT == pytest.approx(1, abs=4 * np.sqrt(2 / len(cosines)))
    assert abs(cosines).max() < 6 / np.sqrt(COUNT)


def test_it_is_the_normalised_draw_of_its_seed_and_step():
    draws = make_generator(5, "direction", 11)
    expected = np.concatenate(
        [torch.randn(shape, generator=draws, dtype=torch.float64).numpy().ravel() for shape in SHAPES.values()]
    )
    assert directions(seed=5, numbers=[11])[0] == pytest.approx(expected * RHO / np.linalg.norm(expected), rel=1e-12)
    assert make_generator(5, "direction", 11, device="cpu").initial_seed() == derive_seed(5, "direction", 11)


@pytest.mark.parametrize("slope", [-3.0, 0.0, 1e-30])
@pytest.mark.parametrize("options", [{}, {"grad_clip": 0.1}, {"count": 7, "group_size": 3}])
def test_neither_gradient_nor_groups_nor_layout_nor_global_generator_move_it(slope, options):
    expected = directions()[0]
    torch.manual_seed(int(slope != 0))
    before = torch.get_rng_state()
    found = directions(model=Slope(slope, layout=torch.channels_last), **options)
    assert len(found) == (3 if "group_size" in options else 1)
    assert all(np.array_equal(eps, expected) for eps in found)
    assert torch.equal(torch.get_rng_state(), before)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 5)
    return nn.Sequential(*layers)


def batch(seed=0, count=12):
    return Batch(torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 5)


def curve(model, radii, **options):
    step = make_step(model, F.cross_entropy, momentum=0.9, **options)
    torch.manual_seed(9)
    return [float(step(batch(number), rho, number).loss_perturbed) for number, rho in enumerate(radii)]


def test_rho_zero_is_the_base_optimizer_to_the_bit():
    models = [network(), network()]
    assert curve(models[0], [0.0] * 3, method=RandomDirection(1)) == curve(models[1], [0.0] * 3)
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


def test_statistics_masks_and_losses_at_w_are_those_of_the_first_pass():
    """With learning rate 0 the weights stay, so a plain step gives the expected effects of the pass at w."""
    plain, ours = network(), network()
    expected = make_step(plain, F.cross_entropy, lr=0.0)
    step = make_step(ours, F.cross_entropy, lr=0.0, method=RandomDirection(2))
    for number in range(3):
        torch.manual_seed(number)
        first = expected(batch(number), 0.0)
        end = torch.get_rng_state()
        torch.manual_seed(number)
        second = step(batch(number), 0.3, number)
        assert torch.equal(torch.get_rng_state(), end)
        assert torch.equal(first.loss, second.loss)
        assert float(first.grad_norm) == pytest.approx(float(second.grad_norm), rel=1e-6)
        assert float(second.loss_perturbed) != float(second.loss)
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in (plain, ours)), strict=True))


def test_a_gradient_at_w_that_is_not_finite_changes_nothing():
    """Loss and gradient at w + eps are finite, only the gradient at w is not: the derivative of a square root at 0."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, inputs):
            return self.w.abs().sqrt().sum().expand(len(inputs), 1)

    model = Root()
    measured = make_step(model, mean_output, method=RandomDirection(0))(ONE, 0.1, 0)
    assert measured.finite.tolist() == [True, False, True, True]
    assert torch.equal(model.w, torch.zeros(3, dtype=torch.float64))


def test_a_step_without_its_number_is_refused():
    with pytest.raises(ValueError, match="number of the step"):
        make_step(Slope(), mean_output, method=RandomDirection(0))(ONE, 0.1)


def test_a_recording_would_repeat_one_draw_so_none_is_made(caplog):
    captured = CapturedStep(
        make_step(model := Slope(), mean_output, lr=0.0, method=RandomDirection(0)), EagerRecorder()
    )
    with caplog.at_level(logging.WARNING):
        for number in range(6):
            captured(ONE, RHO, number)
    assert "a random direction is drawn anew" in caplog.text
    passes = [np.concatenate([part.numpy().ravel() for part in parts]) for parts in model.seen[1::2]]
    assert np.array_equal(passes, directions(numbers=range(6)))


def test_the_trainer_tells_the_number_of_the_step_in_the_run():
    settings = config_of(*TINY, "optimizer=sam", "optimizer.direction=random", "seed=4")
    run = build_run(settings)
    assert run.step.method.seed == 4
    assert isinstance(build_run(config_of(*TINY, "optimizer=sam", "seed=4")).step.method, Sam)
    run = replace(run, step=RecordingStep(run.step))
    progress = Progress(step=100)
    for examples in itertools.islice(run.train.epoch(1), 3):
        loop._train_step(run, mock.Mock(), examples, progress)
    assert run.step.numbers == [100, 101, 102]
