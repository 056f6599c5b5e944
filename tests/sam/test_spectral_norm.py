"""Spectral norm: one power iteration per step, by the first pass, for every kind of step."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from sam_runner.sam.batch import Batch
from sam_runner.sam.batch_statistics import RunningStatistics
from sam_runner.sam.methods import KStep, SecondOrder
from sam_runner.sam.spectral_norm import PowerIterations
from tests.oracles.problems import make_step

KINDS = {"parametrization": parametrizations.spectral_norm, "hook": spectral_norm}
OPTIONS = [
    {}, {"method": KStep(3)}, {"method": SecondOrder()}, {"group_size": 5},
    {"objective": {"num_chunks": 3, "batch_size": 12}},
]  # fmt: skip


def network(kind, rounds=1):
    torch.manual_seed(0)
    norm = KINDS[kind]
    return nn.Sequential(
        norm(nn.Conv2d(2, 4, 3), n_power_iterations=rounds), nn.Tanh(), nn.Flatten(),
        norm(nn.Linear(64, 3), n_power_iterations=rounds),
    ).double()  # fmt: skip


def batch(seed=1, count=12):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 2, 6, 6, dtype=torch.float64, generator=generator), torch.arange(count) % 3)


def vectors(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def iterated(weight, u, v, rounds, *, first):
    """Return both vectors after power iterations of a matrix; `first` names the one that is updated first."""
    matrix = weight.detach().flatten(1)
    for _ in range(rounds):
        for name in (first, "uv".replace(first, "")):
            if name == "u":
                u = matrix @ v / (matrix @ v).norm()
            else:
                v = matrix.T @ u / (matrix.T @ u).norm()
    return u, v


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_iterates_once_with_the_weights_before_it(kind, options, rho, rounds):
    model = network(kind, rounds)
    step = make_step(model, F.cross_entropy, **options)
    for number in range(2):
        expected = {}
        for place in "03":
            layer = model[int(place)]
            if kind == "hook":
                name, weight, first = f"{place}.weight_", layer.weight_orig, "v"
            else:
                name, weight, first = (
                    f"{place}.parametrizations.weight.0._",
                    layer.parametrizations.weight.original,
                    "u",
                )
            before = vectors(model)
            u, v = iterated(weight, before[f"{name}u"], before[f"{name}v"], rounds, first=first)
            expected |= {f"{name}u": u, f"{name}v": v}
        step(batch(number), rho)
        after = vectors(model)
        assert after.keys() == expected.keys()
        assert all(torch.allclose(after[name], expected[name], rtol=0, atol=1e-12) for name in after)
    assert [method.n_power_iterations for method, _ in PowerIterations(model)._methods] == [rounds] * 2


@pytest.mark.parametrize("options", OPTIONS[:2])
@pytest.mark.parametrize("kind", KINDS)
def test_all_passes_see_the_same_vectors(kind, options):
    stats = make_step(network(kind), F.cross_entropy, **options)(batch(), 1e-30)
    assert torch.equal(stats.loss, stats.loss_perturbed)
    halves = make_step(network(kind), F.cross_entropy, group_size=6)(Batch(*(torch.cat([x, x]) for x in half())), 0.0)
    assert torch.equal(*halves.outputs.split(6))


def half():
    whole = batch(count=6)
    return whole.inputs, whole.targets


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_leaves_the_vectors(kind):
    model = network(kind)
    before = vectors(model)
    step = make_step(model, lambda logits, _: logits.mean() * math.inf, keep_statistics=True)
    assert not step(batch(), 0.5).finite.all()
    assert all(torch.equal(value, before[name]) for name, value in vectors(model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_pass_leaves_the_vectors(kind):
    """This holds outside of a step, too."""
    model = network(kind)
    before, statistics = vectors(model), RunningStatistics(model)
    with statistics.discard_updates():
        model(batch().inputs)
    assert all(torch.equal(value, before[name]) for name, value in vectors(model).items())
    model(batch().inputs)
    assert not any(torch.equal(value, before[name]) for name, value in vectors(model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_raises_leaves_the_iterations_on(kind):
    model = network(kind, 2)
    power = PowerIterations(model)
    with pytest.raises(RuntimeError, match="stopped"), power.pause():
        raise RuntimeError("stopped")
    with pytest.raises(RuntimeError, match="single"), power.single_iteration():
        raise RuntimeError(f"single {power.end_pass()}")
    power.end_pass()  # outside of a step it has no effect
    assert [method.n_power_iterations for method, _ in power._methods] == [2, 2]


def test_what_has_no_vectors_is_left_alone():
    plain = nn.Linear(3, 2)
    vector = parametrizations.spectral_norm(nn.LayerNorm(3))  # a one-dimensional weight has no vectors
    for model in (plain, vector):
        state = copy.deepcopy(model.state_dict())
        with PowerIterations(model).pause():
            model(torch.ones(1, 3))
        assert not PowerIterations(model).slots
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
