"""Running statistics: one update per step, by the pass at w, with PyTorch's formula in NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.sam.batch import Batch
from sam_runner.sam.batch_statistics import RunningStatistics
from sam_runner.sam.methods import KStep
from tests.oracles.problems import make_step


def network(momentum=0.1, kind=nn.BatchNorm2d):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), kind(4, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    return nn.Sequential(*layers).double()


def data(count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(count, 2, 6, 6, dtype=torch.float64, generator=generator), torch.arange(count) % 3)


def features(model, images):
    """Return the input of the batch-norm layer as a NumPy array (channel, value)."""
    return model[0](images).detach().numpy().transpose(1, 0, 2, 3).reshape(4, -1)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("ascent_steps", [1, 3])
def test_one_update_per_step_from_the_pass_at_w(momentum, rho, ascent_steps):
    model = network(momentum)
    step = make_step(model, F.cross_entropy, method=KStep(ascent_steps))
    mean, var = np.zeros(4), np.ones(4)
    for number in range(1, 4):
        batch = data(seed=number)
        values = features(model, batch.inputs)
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
        parts = [features(model, images) for images in batch.inputs.split(sizes)]
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
    gradients = torch.autograd.grad(F.cross_entropy(twin(batch.inputs), batch.targets), list(twin.parameters()))
    length = sum(part.square().sum() for part in gradients).sqrt()
    with torch.no_grad():
        for param, part in zip(twin.parameters(), gradients, strict=True):
            param += 0.5 * part / length
    stats = make_step(model, F.cross_entropy)(batch, 0.5)
    assert float(stats.loss_perturbed) == pytest.approx(
        float(F.cross_entropy(twin(batch.inputs), batch.targets).detach()), 1e-12
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
        with statistics.single_statistics_update(2):
            with statistics.accumulate_statistics(12):
                model(data().inputs)
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        passes()
    with pytest.raises(RuntimeError, match="frozen"), statistics.discard_updates():
        raise RuntimeError("frozen")
    assert model[1].momentum == 0.1
    assert model[1].track_running_stats
    assert torch.equal(model[1].running_mean, torch.zeros(4, dtype=torch.float64))
    assert int(model[1].num_batches_tracked) == 0


def test_synchronised_batch_norm_is_covered():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    statistics = RunningStatistics(model)
    mean = model[1].running_mean
    with statistics.discard_updates():
        assert model[1].running_mean is not mean
    assert model[1].running_mean is mean


class Twice(nn.Module):
    """A network that uses one batch-norm layer twice per pass, with different inputs."""

    def __init__(self, momentum):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(3, momentum=momentum), nn.Linear(6, 2)
        self.double()

    def forward(self, images):
        return self.head(torch.cat([self.norm(images), self.norm(3 * images + 1)], 1))


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, [12]), ({"group_size": 5}, [5, 5, 2]), ({"objective": {"num_chunks": 3, "batch_size": 12}}, [4, 4, 4])],
)
def test_a_layer_used_twice_counts_twice_as_in_pytorch(momentum, rho, options, sizes):
    model = Twice(momentum)
    step = make_step(model, F.cross_entropy, **options)
    mean, var = np.zeros(3), np.ones(3)
    for number in range(1, 4):
        images = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        for use, values in enumerate((images, 3 * images + 1), 1):
            parts = [part.numpy() for part in values.split(sizes)]
            factor = 1 / (2 * number - 2 + use) if momentum is None else momentum
            means, variances = ([f(part) for part in parts] for f in (lambda x: x.mean(0), lambda x: x.var(0, ddof=1)))
            mean = (1 - factor) * mean + factor * np.average(means, axis=0, weights=sizes)
            var = (1 - factor) * var + factor * np.average(variances, axis=0, weights=sizes)
        step(Batch(images, torch.arange(12) % 2), rho)
        assert np.abs(model.norm.running_mean.numpy() - mean).max() < 1e-12
        assert np.abs(model.norm.running_var.numpy() - var).max() < 1e-12
        assert int(model.norm.num_batches_tracked) == 2 * number


def instance_norm(features, momentum):
    return nn.InstanceNorm2d(features, momentum=momentum, affine=True, track_running_stats=True)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": KStep(2)}, {"group_size": 5}, {"objective": {"num_chunks": 3, "batch_size": 12}}],
)
def test_instance_norm_is_updated_by_the_pass_at_w_alone(momentum, rho, options):
    """The update is the mean over images, so groups do not change it; torch makes none without momentum."""
    model = network(momentum, instance_norm)
    step = make_step(model, F.cross_entropy, **options)
    mean, var, factor = np.zeros(4), np.ones(4), momentum or 0
    for number in range(1, 4):
        batch = data(seed=number)
        values = model[0](batch.inputs).detach().numpy().reshape(12, 4, -1)
        mean = (1 - factor) * mean + factor * values.mean(2).mean(0)
        var = (1 - factor) * var + factor * values.var(2, ddof=1).mean(0)
        step(batch, rho)
        assert np.abs(model[1].running_mean.numpy() - mean).max() < 1e-12
        assert np.abs(model[1].running_var.numpy() - var).max() < 1e-12
        assert int(model[1].num_batches_tracked) == 0
    assert model[1].track_running_stats


def test_a_frozen_pass_through_instance_norm_is_one_in_training_without_a_trace():
    """With three images, because the mean of three equal numbers can differ from them in the last bit."""
    model = network(kind=instance_norm).float()
    images = data(3).inputs.float()
    model(images)
    statistics, before = RunningStatistics(model), copy.deepcopy(model.state_dict())
    with statistics.discard_updates():
        frozen = model(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(frozen, model(images))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
