"""Algorithm 1 against closed forms on quadratic, linear and least-squares problems (float64)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import KStep, Sam, SecondOrder
from sam_runner.sam.parameter_swap import swapped_parameters
from sam_runner.sam.perturbation import Perturbation, epsilon, perturbed_parameters
from tests.oracles.problems import (
    ONE,
    Linear,
    Quadratic,
    batch_of,
    make_step,
    mean_output,
    quadratic,
    squared_error,
)

INF = math.inf


def grad(model):
    return model.w.grad.tolist()


def near(*values):
    return pytest.approx(values, abs=1e-9)


def test_first_order_gradient_and_statistics():
    model, stats = quadratic()
    assert grad(model) == near(3.3, 5.6)
    assert model.w.tolist() == near(2.67, 0.44)
    assert float(stats.loss) == pytest.approx(6.5, abs=1e-12)
    assert float(stats.loss_perturbed) == pytest.approx(9.365, abs=1e-12)
    assert float(stats.grad_norm) == pytest.approx(5.0, abs=1e-12)
    assert float(stats.eps_norm) == pytest.approx(0.5, abs=1e-12)
    assert stats.skipped is False


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, [(2.67, 0.44), (2.3612537226, 0.1539274185), (2.0767461380, 0.0418927573)]),
        ({"momentum": 0.9}, [(2.67, 0.44), (2.0642537226, -0.3500725815), (1.2712786909, -0.8088334748)]),
        (
            {"momentum": 0.9, "nesterov": True},
            [(2.373, -0.064), (1.5603780338, -0.4282019665), (0.7268793314, -0.1919873544)],
        ),
    ],
)
def test_three_steps_under_each_base_optimizer(options, path):
    for steps, expected in enumerate(path, 1):
        model, _ = quadratic(steps=steps, **options)
        assert model.w.tolist() == near(*expected)


@pytest.mark.parametrize(
    ("p", "expected"), [(1, (3, 6)), (2, (3.3, 5.6)), (3, (3.3664782379, 5.6926904745)), (INF, (3.5, 6))]
)
def test_gradient_for_other_norms(p, expected):
    model, _ = quadratic(method=Sam(p))
    assert grad(model) == near(*expected)


def test_second_order_term():
    model, _ = quadratic(method=SecondOrder())
    assert grad(model) == near(3.2424, 5.7728)


def test_second_order_term_vanishes_for_an_isotropic_quadratic_and_a_single_example():
    isotropic = Quadratic(diagonal=(2.0, 2.0))
    make_step(isotropic, mean_output, method=SecondOrder())(ONE, 0.5)
    first_order = Quadratic(diagonal=(2.0, 2.0))
    make_step(first_order, mean_output)(ONE, 0.5)
    assert grad(isotropic) == near(*grad(first_order))
    example = batch_of([[1.0, 2.0]], [1.0])
    kept, dropped = Linear((0.5, -0.5)), Linear((0.5, -0.5))
    make_step(kept, squared_error, method=SecondOrder())(example, 0.1)
    make_step(dropped, squared_error)(example, 0.1)
    assert grad(kept) == near(*grad(dropped))


@pytest.mark.parametrize(("p", "q"), [(1, INF), (1.5, 3), (2, 2), (INF, 1)])
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_linear_loss_makes_sam_sgd_and_its_sharpness_is_the_dual_norm(p, q, rho):
    a = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    model = Linear((0.3, 0.2, 0.1))
    stats = make_step(model, mean_output, method=Sam(p))(batch_of(a), rho)
    assert grad(model) == near(*a[0].tolist())
    expected = rho * float(torch.linalg.vector_norm(a[0], q))
    assert float(stats.loss_perturbed - stats.loss) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("m", "rho", "expected"),
    [
        (1, 0.1, (0.5745355992, -2.5902734645)),
        (3, 0.1, (0.5349215148, -2.5288938161)),
        (None, 0.1, (0.5349215148, -2.5288938161)),
        (3, 0.0, (0.5, -2.3333333333)),
        (1, 0.0, (0.5, -2.3333333333)),
    ],
)
def test_least_squares_with_groups(m, rho, expected):
    model = Linear((0.5, -0.5))
    make_step(model, squared_error, group_size=m)(batch_of([[1, 2], [2, -1], [0, 1]], [1.0, 0.0, 2.0]), rho)
    assert grad(model) == near(*expected)


def test_groups_of_unequal_size_are_weighted_by_their_examples():
    rows, targets = [[1, 2], [2, -1], [0, 1]], [1.0, 0.0, 2.0]
    parts = []
    for chosen in ([0, 1], [2]):
        model = Linear((0.5, -0.5))
        make_step(model, squared_error)(batch_of([rows[i] for i in chosen], [targets[i] for i in chosen]), 0.1)
        parts.append(model.w.grad)
    whole = Linear((0.5, -0.5))
    stats = make_step(whole, squared_error, group_size=2)(batch_of(rows, targets), 0.1)
    assert grad(whole) == near(*((2 * parts[0] + parts[1]) / 3).tolist())
    assert stats.outputs.shape == (3, 1)


def test_identical_groups_equal_one_group():
    rows, targets = [[1, 2], [2, -1]] * 3, [1.0, 0.5] * 3
    grouped, single = Linear((0.5, -0.5)), Linear((0.5, -0.5))
    make_step(grouped, squared_error, group_size=2)(batch_of(rows, targets), 0.1)
    make_step(single, squared_error)(batch_of(rows, targets), 0.1)
    assert grad(grouped) == near(*grad(single))


@pytest.mark.parametrize("m", [None, 4])
@pytest.mark.parametrize("chunks", [2, 3, 8])
def test_accumulation_shares_one_perturbation(m, chunks):
    rng = np.random.default_rng(0)
    rows, targets = rng.normal(size=(8, 2)), rng.normal(size=8)
    whole, parts = Linear((0.5, -0.5)), Linear((0.5, -0.5))
    stats = make_step(whole, squared_error, group_size=m)(batch_of(rows, targets), 0.3)
    accumulated = make_step(parts, squared_error, group_size=m, objective={"num_chunks": chunks, "batch_size": 8})(
        batch_of(rows, targets), 0.3
    )
    assert grad(parts) == near(*grad(whole))
    assert float(accumulated.loss) == pytest.approx(float(stats.loss), abs=1e-12)
    assert float(accumulated.loss_perturbed) == pytest.approx(float(stats.loss_perturbed), abs=1e-12)
    assert torch.allclose(accumulated.outputs, stats.outputs, atol=1e-12)


@pytest.mark.parametrize(
    ("ascent_steps", "projected", "expected"),
    [
        (2, False, (0.2538461538, 0.4307692308)),
        (3, False, (0.2471251427, 0.4346598254)),
        (60, False, (0.2460976810, 0.4352423823)),
        (2, True, (0.2773500981, 0.4160251472)),
        (3, True, (0.2640135860, 0.4246137379)),
        (5, True, (0.2518945164, 0.4319133624)),
    ],
)
def test_further_ascent_steps(ascent_steps, projected, expected):
    model, stats = quadratic(method=KStep(ascent_steps, projected=projected))
    eps = [gradient / curvature - w for gradient, curvature, w in zip(grad(model), (1, 4), (3, 1), strict=True)]
    assert eps == near(*expected)
    assert float(stats.eps_norm) == pytest.approx(0.5, abs=1e-9)
    assert float(stats.grad_norm) == pytest.approx(5.0, abs=1e-12)  # of the gradient at w


@pytest.mark.parametrize("projected", [False, True])
def test_further_ascent_never_lowers_the_loss_and_reaches_the_trust_region_solution(projected):
    losses = [
        float(quadratic(method=KStep(steps, projected=projected))[1].loss_perturbed) for steps in (*range(1, 8), 80)
    ]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(9.365, abs=1e-12)
    assert losses[-1] == pytest.approx(9.3884164696, abs=1e-9)


def test_weight_decay_in_the_loss_and_by_the_base_optimizer():
    in_loss, stats = quadratic(objective={"weight_decay": 0.1})
    assert grad(in_loss) == near(3.6448551729, 5.6969739548)
    eps = [
        (gradient - 0.1 * w) / (c + 0.1) - w * c / (c + 0.1)
        for gradient, w, c in zip(grad(in_loss), (3, 1), (1, 4), strict=True)
    ]
    assert eps == near(0.3135047026, 0.3895058426)
    assert float(stats.loss) == pytest.approx(6.5, abs=1e-12)
    by_base, _ = quadratic(weight_decay=0.1)
    moved = [(before - after) / 0.1 for before, after in zip((3.0, 1.0), by_base.w.tolist(), strict=True)]
    assert moved == near(3.6, 5.7)


def test_only_the_final_gradient_is_clipped():
    model, stats = quadratic(grad_clip=5.0)
    assert grad(model) == pytest.approx((2.5384615385, 4.3076923077), abs=1e-6)  # torch divides by norm + 1e-6
    assert float(stats.loss_perturbed) == pytest.approx(9.365, abs=1e-12)
    unclipped, _ = quadratic(grad_clip=7.0)
    assert grad(unclipped) == near(3.3, 5.6)


class PartlyUsed(nn.Module):
    """A model with a parameter that no pass uses and one that only the first pass uses."""

    def __init__(self):
        super().__init__()
        self.used, self.once, self.never = (nn.Parameter(torch.rand(3) + 1) for _ in range(3))
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        value = (self.used**2).sum() + ((self.once**2).sum() if self.passes % 2 else 0)
        return value.expand(len(inputs), 1)


def test_weights_are_restored_to_the_bit_when_a_parameter_gets_no_gradient():
    torch.manual_seed(0)
    model = PartlyUsed()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    addresses = [param.data_ptr() for param in model.parameters()]
    make_step(model, mean_output, lr=1e-30)(Batch(torch.zeros(1, 1), torch.zeros(1)), 0.7)
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    assert [param.data_ptr() for param in model.parameters()] == addresses


def test_as_many_values_as_parameters_are_needed():
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="zip"), swapped_parameters(params, [torch.ones(2)]):
        pass
    assert not any(param.any() for param in params)


def test_weights_are_restored_when_the_second_pass_raises():
    model = Quadratic()
    step = make_step(model, mean_output)
    calls = []

    def forward(inputs):
        calls.append(model.w.detach().clone())
        if len(calls) == 2:
            raise RuntimeError("second pass")
        return model(inputs)

    step.objective._forward = forward
    with pytest.raises(RuntimeError, match="second pass"):
        step(ONE, 0.5)
    assert calls[1].tolist() == near(3.3, 1.4)
    assert torch.equal(model.w, torch.tensor([3.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("in_place", [False, True])
def test_displaced_holds_w_plus_eps_inside_and_the_bits_of_w_after(in_place):
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(1000)),
        nn.Parameter(torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last)),
    ]
    eps = [torch.randn_like(param) * 1e-3 for param in params]
    before = [param.detach().clone() for param in params]
    perturbed = Perturbation([part.clone() for part in eps], torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.0))
    moved = perturbed_parameters(params, perturbed, in_place=in_place)
    same_memory = [a.data_ptr() == b.data_ptr() for a, b in zip(moved, perturbed.direction, strict=True)]
    assert same_memory == [in_place, in_place]
    assert in_place or all(torch.equal(a, b) for a, b in zip(perturbed.direction, eps, strict=True))
    with swapped_parameters(params, moved):
        assert all(torch.equal(param, w + 0.5 * e) for param, w, e in zip(params, before, eps, strict=True))
        assert params[1].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(param, w) for param, w in zip(params, before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sam(0.5), "p=0.5"),
        (lambda: Sam(math.nan), "p=nan"),
        (lambda: SecondOrder(0), "p=0"),
        (lambda: KStep(2, p=-1), "p=-1"),
        (lambda: KStep(2, projected=True, p=3), "projected"),
        (lambda: KStep(0), "ascent_steps=0"),
        (lambda: epsilon([torch.ones(2)], 0.1, 0.5), "p=0.5"),
        (
            lambda: make_step(Quadratic(), mean_output, method=Sam(sync_perturbation=True), group_size=1),
            "group_size=None",
        ),
    ],
)
def test_undefined_combinations_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_a_parameter_that_no_pass_uses_is_not_decayed(p, second_order, rho):
    model = PartlyUsed()
    before = model.never.detach().clone()
    batch = Batch(torch.zeros(2, 1), torch.zeros(2))
    method = SecondOrder(p) if second_order else Sam(p)
    make_step(model, mean_output, weight_decay=0.1, method=method, group_size=1)(batch, rho)
    assert model.never.grad is None
    assert torch.equal(model.never, before)
