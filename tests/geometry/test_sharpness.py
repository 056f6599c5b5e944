"""Sharpness against closed forms on quadratics and least squares, and its invariance under rescaling, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.geometry.directions import Plane, draw_filter_normalised_direction, plane_through
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.geometry.sharpness import average_case, m_sharpness, worst_case
from sam_runner.sam.batch import Batch
from tests.geometry import problems

A = torch.tensor([1.0, 4.0], dtype=torch.float64)
W = torch.tensor([3.0, 1.0], dtype=torch.float64)
X = torch.tensor([[1.0, 2.0], [2.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)


def quadratic(w):
    return float((A * w * w).sum() / 2), A * w


def test_worst_case_of_a_quadratic_is_the_solution_of_the_trust_region():
    """L = 1/2 w^T diag(1, 4) w at (3, 1), rho 0.5: the maximum is 9.3884164696 (e = (lambda I - A)^-1 g)."""
    assert worst_case(quadratic, W, 0.5, num_steps=40) == pytest.approx(9.3884164696 - 6.5, abs=1e-8)
    assert worst_case(quadratic, W, 0.5, num_steps=1, num_restarts=0) == pytest.approx(9.365 - 6.5, abs=1e-12)
    at_minimum = worst_case(quadratic, torch.zeros(2).double(), 0.5, num_steps=60)
    assert at_minimum == pytest.approx(0.5**2 * 4 / 2, abs=1e-6)


def test_worst_case_with_a_gradient_whose_squares_underflow_in_float32():
    def tiny(w):
        loss, grad = quadratic(w.double())
        return loss * 1e-25, (grad * 1e-25).float()

    found = worst_case(tiny, W.float(), 0.5, num_steps=40, num_restarts=0) * 1e25
    assert found == pytest.approx(9.3884164696 - 6.5, rel=1e-4)


def test_worst_case_around_a_maximum_is_zero():
    """The gradient at w + u leads straight back to w."""
    assert worst_case(lambda w: (-float(w @ w), -2 * w), torch.zeros(1).double(), 0.5) == 0


def test_adaptive_worst_case_of_a_linear_loss():
    """L = a . w: the maximum over ||e / |w| ||_2 <= rho of a . e is rho || |w| a ||_2."""
    a = torch.tensor([2.0, -5.0], dtype=torch.float64)
    found = worst_case(lambda w: (float(a @ w), a), W, 0.1, scale=W.abs())
    assert found == pytest.approx(0.1 * float((W * a).norm()), rel=1e-12)


def test_restarts_find_a_higher_maximum():
    """L = w^4 - w^2 / 10 has its maximum on the ball at the ends, 0.9, and no slope at 0."""

    def wave(w):
        return float(w[0] ** 4 - w[0] ** 2 / 10), torch.stack([4 * w[0] ** 3 - w[0] / 5, 0 * w[1]])

    at = torch.zeros(2).double()
    assert worst_case(wave, at, 1.0, num_steps=30, num_restarts=5) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_loss_that_is_not_finite_in_the_ball_has_no_worst_case(bad):
    """The loss is finite at w and on one side of w; Python's max() would ignore the NaN of the other side."""

    def wall(w):
        return (bad if float(w[0]) > 3.2 else float(w[0])), torch.tensor([1.0, 0.0]).double()

    def cliff(w):
        return float(w[0]), torch.tensor([bad if float(w[0]) > 3.2 else 1.0, 0.0]).double()

    def tower(w):
        return (bad if torch.equal(w, W) else 0.0), torch.ones(2).double()

    assert worst_case(wall, W, 0.1) == pytest.approx(0.1)
    assert math.isnan(worst_case(tower, W, 0.1))
    for function in (wall, cliff):
        assert worst_case(function, W, 0.5, num_steps=3) != worst_case(function, W, 0.5, num_steps=3)
    assert torch.tensor(average_case(lambda w: wall(w)[0], W, 0.5).value).isfinite().logical_not()


def test_average_case_of_a_quadratic_is_half_rho_squared_times_the_mean_eigenvalue():
    found = average_case(lambda w: quadratic(w)[0], W, 0.5, num_directions=4000)
    assert abs(found.value - 0.5**2 * 2.5 / 2) < 4 * found.standard_error < 0.02
    isotropic = average_case(lambda w: 1.5 * float(w @ w), W, 0.5, num_directions=3)
    assert isotropic.value == pytest.approx(1.5 * 0.25, rel=1e-9) and isotropic.standard_error < 1e-9
    scaled = average_case(lambda w: 1.5 * float(((w - W) / W) @ ((w - W) / W)), W, 0.5, num_directions=2, scale=W)
    assert scaled.value == pytest.approx(1.5 * 0.25, rel=1e-9)


def least_squares(chunk_size=3):
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[0.5, -0.5]], dtype=torch.float64)

    def loss(out, target):
        return (out[:, 0] - target).square().mean() / 2

    return MeanLoss(model, loss, Batch(X, Y), chunk_size=chunk_size, dtype=torch.float64)


def test_m_sharpness_of_least_squares_has_a_closed_form():
    """One example: max over ||e|| <= rho of 1/2 (x.(w + e) - y)^2 is 1/2 (|r| + rho ||x||)^2."""
    loss, rho = least_squares(), 0.1
    r = X @ loss.weights - Y
    exact = ((r.abs() + rho * X.norm(dim=1)).square() - r.square()) / 2
    found = m_sharpness(loss, 1, rho)
    assert found.value == pytest.approx(float(exact.mean()), rel=1e-12)
    assert found.standard_error == pytest.approx(float(exact.std()) / 3**0.5, rel=1e-12)
    whole = worst_case(loss.gradient, loss.weights, rho, num_steps=1, num_restarts=0)
    assert m_sharpness(loss, 3, rho).value == pytest.approx(whole, rel=1e-12)
    assert m_sharpness(loss, 1, rho, max_groups=1).value == pytest.approx(float(exact[0]), rel=1e-12)
    with pytest.raises(ValueError, match="larger than the number of examples"):
        m_sharpness(loss, 4, rho)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_rises_in_float32_are_not_those_of_rounding(factor):
    """A mean loss of 2 has a rounding of 1e-7 in float32, as large as a rise; the losses of examples add up in float64.

    The rounding at w is in all directions, so the standard error would not show it.
    """

    def network(dtype):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 3))
        batch = problems.examples(300)
        return MeanLoss(model, F.cross_entropy, Batch(batch.inputs * factor, batch.targets), chunk_size=100,
                        dtype=dtype)  # fmt: skip

    single, double = network(torch.float32), network(torch.float64)
    exact = double.value(double.weights)
    assert max(abs(single.value(single.weights) - exact), abs(single.gradient(single.weights)[0] - exact)) < 2e-8
    rises = [average_case(loss.value, loss.weights, 0.003, num_directions=5).value for loss in (single, double)]
    assert rises[0] == pytest.approx(rises[1], rel=0.06)


@pytest.mark.parametrize("factor", [3.0, 0.02])
def test_adaptive_sharpness_does_not_change_under_a_rescaling_of_layers(factor):
    """relu(a W x) / a = relu(W x): the network's function stays, its weights do not."""

    def network(a):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            model[1].weight *= a
            model[1].bias *= a
            model[3].weight /= a
        batch = problems.examples()
        return MeanLoss(model, F.cross_entropy, batch, chunk_size=20, dtype=torch.float64)

    one, other = network(1.0), network(factor)
    assert one.value(one.weights) == pytest.approx(other.value(other.weights), rel=1e-12)
    worst = [
        worst_case(loss.gradient, loss.weights, 0.3, num_steps=6, scale=loss.weights.abs()) for loss in (one, other)
    ]
    assert worst[0] > 0 and worst[1] == pytest.approx(worst[0], rel=1e-9)
    average = [
        average_case(loss.value, loss.weights, 0.3, num_directions=3, scale=loss.weights.abs()).value
        for loss in (one, other)
    ]
    assert average[1] == pytest.approx(average[0], rel=1e-7)
    plain = [worst_case(loss.gradient, loss.weights, 0.3, num_steps=6) for loss in (one, other)]
    assert plain[1] != pytest.approx(plain[0], rel=0.1)


def test_filters_of_a_direction_have_the_norms_of_the_networks_filters():
    network = problems.networks()["conv"]
    loss = problems.mean_loss(network)
    direction, other = (draw_filter_normalised_direction(loss, number) for number in (0, 1))
    for param, part in zip(loss.parameters, loss.unflatten(direction), strict=True):
        if param.ndim == 1:
            assert not part.any()
        else:
            torch.testing.assert_close(part.flatten(1).norm(dim=1), param.flatten(1).norm(dim=1))
    assert abs(float(direction @ other / direction.norm() / other.norm())) < 0.6
    assert torch.equal(direction, draw_filter_normalised_direction(loss, 0))


def test_a_plane_contains_its_three_points():
    points = [torch.tensor(values, dtype=torch.float64) for values in ([1, 2, 3], [4, 6, 3], [1, 3, 5])]
    plane, places = plane_through(*points)
    for point, place in zip(points, places, strict=True):
        torch.testing.assert_close(plane.point(*place), point)
    axes = torch.stack([plane.first, plane.second])
    torch.testing.assert_close(axes @ axes.T, torch.eye(2).double())
    assert places[0] == (0, 0) and places[1] == (5, 0)
    with pytest.raises(ValueError, match="one line"):
        plane_through(points[0], points[1], 2 * points[1] - points[0])
    torch.testing.assert_close(Plane(points[0], points[1] - points[0], None).point(1.0), points[1])
