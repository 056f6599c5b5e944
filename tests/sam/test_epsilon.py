"""Eq. 2: closed forms and the properties that define the maximiser."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sam_runner.sam.perturbation import epsilon, norm_of

INF = math.inf
PS = st.one_of(st.just(1.0), st.just(2.0), st.just(INF), st.floats(1.05, 50))


def norm(values, p):
    values = np.abs(np.asarray(values, dtype=np.float64))
    if p == INF:
        return values.max()
    top = values.max() or 1.0
    return top * ((values / top) ** p).sum() ** (1 / p)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).numpy()


@pytest.mark.parametrize(
    ("p", "expected", "dual_norm"),
    [
        (1, (0, -1), 4),
        (1.5, (0.444851352, -0.790846848), 4.497941445),
        (2, (0.6, -0.8), 5),
        (3, (0.732956476, -0.846345237), 5.584250376),
        (4, (0.797874688, -0.878174725), 5.906322966),
        (INF, (1, -1), 7),
    ],
)
def test_closed_form_values(p, expected, dual_norm):
    g = torch.tensor([3.0, -4.0], dtype=torch.float64)
    (eps,) = epsilon([g], 1.0, p)
    assert eps.tolist() == pytest.approx(expected, abs=1e-9)
    assert float(g @ eps) == pytest.approx(dual_norm, abs=1e-9)


@given(
    values=st.lists(st.floats(-1e3, 1e3).map(lambda v: round(v, 6)), min_size=1, max_size=12).filter(any),
    cut=st.integers(0, 12),
    rho=st.floats(1e-3, 1e3),
    p=PS,
)
@settings(max_examples=200, deadline=None)
def test_it_is_the_maximiser_on_the_ball(values, cut, rho, p):
    g = torch.tensor(values, dtype=torch.float64)
    parts = [part for part in (g[:cut], g[cut:]) if len(part)]
    eps = flat(epsilon(parts, rho, p))
    q = INF if p == 1 else 1.0 if p == INF else p / (p - 1)
    assert norm(eps, p) == pytest.approx(rho, rel=1e-9) or (p == INF and norm(eps, p) <= rho)
    assert float(g.numpy() @ eps) == pytest.approx(rho * norm(values, q), rel=1e-9)


@given(exponent=st.integers(-100, 100), p=PS)
@settings(max_examples=60, deadline=None)
def test_a_loss_scale_cancels(exponent, p):
    g = [torch.tensor([3.0, -4.0], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)]
    scaled = [part * 2.0**exponent for part in g]
    assert flat(epsilon(scaled, 0.05, p)) == pytest.approx(flat(epsilon(g, 0.05, p)), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("p", [1.1, 1.5, 3.0, 20.0, INF])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_float32_neither_overflows_nor_underflows(p, size):
    g = torch.tensor([3.0, -4.0, 1.0])
    expected = flat(epsilon([g.double()], 1.0, p))
    assert flat(epsilon([g * size], 1.0, p)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_float32_euclidean_norm_in_its_documented_range(size):
    g = torch.tensor([3.0, -4.0]) * size
    assert flat(epsilon([g], 1.0, 2.0)) == pytest.approx([0.6, -0.8], rel=1e-5)


@pytest.mark.parametrize("p", [1.5, 2, 3])
@pytest.mark.parametrize("values", [[3.0, -4.0], [1.0, 0.0], [0.0, 0.0]])
def test_it_is_the_same_in_a_graph(values, p):
    g = torch.tensor(values, dtype=torch.float64)
    (eps,) = epsilon([g.clone().requires_grad_()], 0.3, p)
    (derivative,) = torch.autograd.functional.jacobian(lambda g: tuple(epsilon([g], 0.3, p)), g)
    assert eps.requires_grad
    assert torch.allclose(eps.detach(), epsilon([g], 0.3, p)[0], rtol=0, atol=1e-14)
    assert derivative.isfinite().all()
    assert torch.allclose(derivative @ g, torch.zeros_like(g), rtol=0, atol=1e-14)  # eps does not depend on the length


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
def test_zero_gradient_gives_zero_perturbation(p):
    eps = epsilon([torch.zeros(3), torch.zeros(2, 2)], 0.5, p)
    assert all(torch.equal(part, torch.zeros_like(part)) for part in eps)


def test_equal_largest_entries_share_rho_at_p_one():
    eps = epsilon([torch.tensor([2.0, -2.0, 1.0]), torch.tensor([2.0])], 0.3, 1)
    assert flat(eps) == pytest.approx([0.1, -0.1, 0.0, 0.1])


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, INF])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_stays_visible(p, bad):
    eps = epsilon([torch.tensor([1.0, bad]), torch.tensor([2.0])], 0.5, p)
    assert not np.isfinite(flat(eps)).all()


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_norm_that_overflows_gives_nan(in_graph):
    (eps,) = epsilon([torch.full((2,), 1e30).requires_grad_(in_graph)], 0.5)
    assert eps.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_over_tensors_of_every_layout_equals_numpy(dtype):
    torch.manual_seed(0)
    tensors = [
        torch.randn(3, dtype=dtype),
        torch.randn((), dtype=dtype),
        torch.randn(0, dtype=dtype),
        torch.randn(4, 5, dtype=dtype).t(),
        torch.randn(8, 3, 5, 5, dtype=dtype).to(memory_format=torch.channels_last),
        torch.randn(6, 8, dtype=dtype)[:, ::2],
        torch.ones(1, dtype=dtype).expand(7),
    ]
    expected = np.sqrt(sum((tensor.double().numpy() ** 2).sum() for tensor in tensors))
    norm = norm_of(tensors)
    assert norm.dtype == dtype
    assert norm.shape == ()
    assert float(norm) == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-14)


def test_norm_of_many_float32_numbers_is_exact_to_a_thousandth():
    torch.manual_seed(0)
    numbers = torch.randn(20_000_000)
    assert float(norm_of([numbers])) == pytest.approx(float(numbers.double().norm()), rel=1e-3)
