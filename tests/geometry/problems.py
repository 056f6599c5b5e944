"""Small problems in float64 whose Hessian is known: by a closed form, or dense by autograd and own batch norm."""

import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.sam.batch import Batch

SMOOTHING = 0.1


class Normalise(nn.Module):
    """Batch norm written out: by the batch, or by given statistics."""

    def __init__(self, layer, mode):
        super().__init__()
        self.weight, self.bias, self.eps, self.mode = layer.weight, layer.bias, layer.eps, mode
        self.statistics = layer.running_mean.clone(), layer.running_var.clone()

    def forward(self, x):
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        mean, variance = self.statistics
        if self.mode == "train":
            mean = x.mean(axes)
            variance = (x - mean.view(shape)).square().mean(axes)
        unit = (x - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        return unit * self.weight.view(shape) + self.bias.view(shape)


def networks():
    """Three networks with inputs of shape (2, 4, 4) and three classes."""
    torch.manual_seed(1)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(32, 2), nn.Tanh(), nn.Linear(2, 3))
    normed = nn.Sequential(nn.Flatten(), nn.Linear(32, 2), nn.BatchNorm1d(2), nn.Softplus(), nn.Linear(2, 3))
    conv = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.AvgPool2d(3), nn.Flatten(),
        nn.Linear(3, 3),
    )  # fmt: skip
    found = {"mlp": mlp.double(), "batchnorm": normed.double(), "conv": conv.double()}
    for network in found.values():  # running statistics that are neither 0 and 1 nor those of the examples
        network.train()
        for _ in range(3):
            network(torch.randn(16, 2, 4, 4, dtype=torch.float64) * 2 + 1)
    return found


def examples(count=14):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(count) % 3)


def cross_entropy(logits, targets):
    return F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)


def mean_loss(network, mode="train", chunk_size=5, weight_decay=0.0, batch=None):
    return MeanLoss(
        network, cross_entropy, batch or examples(), chunk_size=chunk_size, batchnorm=mode,
        weight_decay=weight_decay, dtype=torch.float64,
    )  # fmt: skip


def written_out(network, mode):
    """The network with batch norm written out, without dropout, as a function of (flat weights, images)."""
    layers = [Normalise(m, mode) if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) else m for m in network]
    plain = nn.Sequential(*[layer for layer in layers if not isinstance(layer, nn.Dropout)])
    names, params = zip(*plain.named_parameters(), strict=True)

    def call(flat, images):
        parts = flat.split([param.numel() for param in params])
        values = {n: part.view_as(param) for n, part, param in zip(names, parts, params, strict=True)}
        return torch.func.functional_call(plain, values, images)

    return call


def dense(network, mode, sizes=(5, 5, 4), weight_decay=0.0):
    """(loss, gradient, Hessian) of the mean over chunks of the given sizes, by autograd on the written-out network."""
    call, batch = written_out(network, mode), examples(sum(sizes))

    def value(flat):
        parts = zip(batch.inputs.split(sizes), batch.targets.split(sizes), strict=True)
        total = sum(
            F.cross_entropy(call(flat, x), y, label_smoothing=SMOOTHING, reduction="sum") for x, y in parts
        ) / sum(sizes)
        return total + weight_decay / 2 * flat.square().sum()

    flat = torch.cat([param.detach().flatten() for param in network.parameters()]).requires_grad_()
    loss = value(flat)
    (gradient,) = torch.autograd.grad(loss, flat)
    return loss.detach(), gradient, torch.autograd.functional.hessian(value, flat.detach())


def matrix(n=30, seed=3):
    """A symmetric matrix with known eigenvalues, two of them equal; (matrix, eigenvalues descending)."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    values = torch.cat([torch.tensor([9.0, 9.0, 7.0, 4.0]), torch.linspace(1, -2, n - 4)]).double()
    return (basis * values) @ basis.T, values
