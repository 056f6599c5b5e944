"""The step against independent implementations: NumPy, torch.func, and pytorch-optimizer's SAM."""

import copy

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import KStep, Sam, SecondOrder
from sam_runner.sam.perturbation import epsilon
from tests.oracles import numpy_sam
from tests.oracles.problems import make_step

INPUTS, HIDDEN, CLASSES = 5, 7, 4


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).double()


def batches(count=4, size=12):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(size, INPUTS)), rng.integers(CLASSES, size=size)) for _ in range(count)]


def as_batch(x, y):
    return Batch(torch.from_numpy(x), torch.from_numpy(y))


def vector(model):
    return torch.cat([param.detach().flatten() for param in model.parameters()]).numpy()


@pytest.mark.parametrize(
    ("numpy_options", "step_options"),
    [
        ({}, {}),
        ({"momentum": 0.9, "nesterov": True, "decay": 0.01}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ({"p": 1.5}, {"method": Sam(1.5)}),
        ({"p": 1}, {"method": Sam(1)}),
        ({"p": np.inf}, {"method": Sam(np.inf)}),
        ({"group": 5}, {"group_size": 5}),
        ({"group": 1, "momentum": 0.9}, {"group_size": 1, "momentum": 0.9}),
        ({"ascent_steps": 3}, {"method": KStep(3)}),
        ({"ascent_steps": 4, "projected": True, "group": 6}, {"method": KStep(4, projected=True), "group_size": 6}),
        ({"decay_in_loss": 0.05}, {"objective": {"weight_decay": 0.05}}),
        (
            {"decay_in_loss": 0.05, "group": 4},
            {"group_size": 4, "objective": {"weight_decay": 0.05, "num_chunks": 6, "batch_size": 12}},
        ),
        ({"group": 5, "p": 3}, {"group_size": 5, "method": Sam(3), "objective": {"num_chunks": 4, "batch_size": 12}}),
    ],
)
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_training_equals_numpy(numpy_options, step_options, rho):
    model = mlp()
    step = make_step(model, F.cross_entropy, lr=0.2, **step_options)
    expected = numpy_sam.train(vector(model), batches(), HIDDEN, CLASSES, rho=rho, lr=0.2, **numpy_options)
    for (x, y), w in zip(batches(), expected, strict=True):
        step(as_batch(x, y), rho)
        assert np.abs(vector(model) - w).max() < 1e-10


def test_clipped_training_equals_numpy():
    model = mlp()
    step = make_step(model, F.cross_entropy, lr=0.2, grad_clip=0.1)
    expected = numpy_sam.train(vector(model), batches(), HIDDEN, CLASSES, rho=0.3, lr=0.2, clip=0.1)
    for x, y in batches():
        step(as_batch(x, y), 0.3)
    assert np.abs(vector(model) - expected[-1]).max() < 1e-5  # torch divides by norm + 1e-6


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 3)
    ).double()


@pytest.mark.parametrize("p", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("second_order", [False, True])
def test_gradient_equals_a_functional_twin(p, second_order):
    """The whole objective L(w + eps(w)) as one function of w, differentiated by autograd."""
    model = convolutional()
    images, labels = torch.randn(8, 2, 6, 6, dtype=torch.float64), torch.arange(8) % 3
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        fresh = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return F.cross_entropy(functional_call(model, dict(zip(names, weights, strict=True)) | fresh, images), labels)

    w = [param.detach().clone().requires_grad_() for param in model.parameters()]
    g = torch.autograd.grad(loss(*w), w, create_graph=True)
    q = p / (p - 1)
    length = sum((part.abs() ** q).sum() for part in g) ** (1 / p)
    eps = [0.1 * part.sign() * part.abs() ** (q - 1) / length for part in g]
    if not second_order:
        eps = [part.detach() for part in eps]
    expected = torch.autograd.grad(loss(*(at + e for at, e in zip(w, eps, strict=True))), w)
    make_step(model, F.cross_entropy, method=SecondOrder(p) if second_order else Sam(p))(Batch(images, labels), 0.1)
    for param, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(param.grad, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunks", [1, 4])
def test_second_order_with_groups_and_micro_batches_is_the_mean_over_groups(chunks):
    model = mlp()
    x, y = batches(1)[0]
    expected = [torch.zeros_like(param) for param in model.parameters()]
    for start in (0, 4, 8):
        part = copy.deepcopy(model)
        make_step(part, F.cross_entropy, method=SecondOrder())(
            as_batch(x[start : start + 4], y[start : start + 4]), 0.3
        )
        for total, param in zip(expected, part.parameters(), strict=True):
            total += param.grad / 3
    objective = {"num_chunks": chunks, "batch_size": 12}
    make_step(model, F.cross_entropy, method=SecondOrder(), group_size=4, objective=objective)(as_batch(x, y), 0.3)
    for param, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(param.grad, gradient, rtol=0, atol=1e-10)


def test_path_equals_pytorch_optimizers_sam():
    ours, peers = mlp(), mlp()
    step = make_step(ours, F.cross_entropy, lr=0.1, momentum=0.9, weight_decay=0.01)
    peer = pytorch_optimizer.SAM(
        peers.parameters(), torch.optim.SGD, rho=0.2, perturb_eps=0.0, lr=0.1, momentum=0.9, weight_decay=0.01
    )
    for x, y in batches(6):
        batch = as_batch(x, y)
        step(batch, 0.2)
        F.cross_entropy(peers(batch.inputs), batch.targets).backward()
        peer.first_step(zero_grad=True)
        F.cross_entropy(peers(batch.inputs), batch.targets).backward()
        peer.second_step(zero_grad=True)
        assert np.abs(vector(ours) - vector(peers)).max() < 1e-8  # its norm is float32


def test_perturbation_of_a_network_has_length_rho():
    model = mlp()
    x, y = batches(1)[0]
    F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    eps = epsilon([param.grad for param in model.parameters()], 0.05)
    assert float(sum(part.square().sum() for part in eps)) ** 0.5 == pytest.approx(0.05, abs=1e-12)
