"""Running statistics: from the pass at w, once per step, as PyTorch would keep them (oracle 14)."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.batchnorm import RunningStatistics
from sam_runner.objective import Batch
from tests.oracles.problems import make_step


def network(momentum=0.1, kind=nn.BatchNorm2d):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), kind(4, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    return nn.Sequential(*layers).double()


def data(count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 2, 6, 6, dtype=torch.float64, generator=generator), torch.arange(count) % 3)


def features(model, images):
    """Input of the batch norm, as (channel, values), in NumPy."""
    return model[0](images).detach().numpy().transpose(1, 0, 2, 3).reshape(4, -1)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("ascent_steps", [1, 3])
def test_one_update_per_step_from_the_pass_at_w(momentum, rho, ascent_steps):
    model = network(momentum)
    step = make_step(model, F.cross_entropy, ascent_steps=ascent_steps)
    mean, var = np.zeros(4), np.ones(4)
    for number in range(1, 4):
        batch = data(seed=number)
        values = features(model, batch.images)
        factor = 1 / number if momentum is None else momentum
        mean, var = (1 - factor) * mean + factor * values.mean(1), (1 - factor) * var + factor * values.var(1, ddof=1)
        step(batch, rho)
        assert np.abs(model[1].running_mean.numpy() - mean).max() < 1e-12
        assert np.abs(model[1].running_var.numpy() - var).max() < 1e-12
        assert int(model[1].num_batches_tracked) == number


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"group_size": 4}, [4, 4, 4]),
        ({"group_size": 5}, [5, 5, 2]),
        ({"objective": {"num_chunks": 3, "batch_size": 12}}, [4, 4, 4]),
        ({"group_size": 8, "objective": {"num_chunks": 4, "batch_size": 12}}, [3, 3, 2, 3, 1]),
    ],
)
def test_groups_and_micro_batches_make_one_update_with_their_mean(momentum, rho, options, sizes):
    model = network(momentum)
    step = make_step(model, F.cross_entropy, **options)
    mean, var = np.zeros(4), np.ones(4)
    for number in range(1, 3):
        batch = data(seed=number)
        parts = [features(model, images) for images in batch.images.split(sizes)]
        weights = np.array(sizes) / 12
        factor = 1 / number if momentum is None else momentum
        mean = (1 - factor) * mean + factor * sum(w * part.mean(1) for w, part in zip(weights, parts, strict=True))
        var = (1 - factor) * var + factor * sum(w * part.var(1, ddof=1) for w, part in zip(weights, parts, strict=True))
        step(batch, rho)
        assert np.abs(model[1].running_mean.numpy() - mean).max() < 1e-12
        assert np.abs(model[1].running_var.numpy() - var).max() < 1e-12
        assert int(model[1].num_batches_tracked) == number
        assert model[1].momentum == momentum


def test_both_passes_normalise_by_the_batch():
    model = network()
    batch = data()
    twin = copy.deepcopy(model)
    gradients = torch.autograd.grad(F.cross_entropy(twin(batch.images), batch.labels), list(twin.parameters()))
    length = sum(part.square().sum() for part in gradients).sqrt()
    with torch.no_grad():
        for param, part in zip(twin.parameters(), gradients, strict=True):
            param += 0.5 * part / length
    stats = make_step(model, F.cross_entropy)(batch, 0.5)
    assert float(stats.loss_perturbed) == pytest.approx(
        float(F.cross_entropy(twin(batch.images), batch.labels).detach()), 1e-12
    )


@pytest.mark.parametrize("options", [{}, {"group_size": 4}])
def test_layers_with_frozen_statistics_stay_frozen(options):
    model = network()
    model[1].eval()
    model[1].running_mean += 0.3
    before = copy.deepcopy(model[1].state_dict())
    make_step(model, F.cross_entropy, **options)(data(), 0.5)
    after = model[1].state_dict()
    assert torch.equal(after["running_mean"], before["running_mean"])
    assert int(after["num_batches_tracked"]) == 0
    assert not model[1].training


def test_layers_without_statistics_are_left_alone():
    model = network()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).double()
    stats = make_step(model, F.cross_entropy, group_size=4)(data(), 0.5)
    assert torch.isfinite(stats.loss_perturbed)
    assert model[1].running_mean is None


def test_a_pass_that_raises_leaves_momentum_and_statistics():
    model = network()
    statistics = RunningStatistics(model)

    def passes():
        with statistics.one_update(2):
            model(data().images)
            statistics.observe(12)
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        passes()
    with pytest.raises(RuntimeError, match="frozen"), statistics.frozen():
        raise RuntimeError("frozen")
    assert model[1].momentum == 0.1
    assert model[1].track_running_stats
    assert torch.equal(model[1].running_mean, torch.zeros(4, dtype=torch.float64))
    assert int(model[1].num_batches_tracked) == 0


def test_synchronised_batch_norm_is_covered():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    statistics = RunningStatistics(model)
    with statistics.frozen():
        assert not model[1].track_running_stats
    assert model[1].track_running_stats
