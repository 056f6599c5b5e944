"""Models and losses with closed-form answers, in float64."""

import torch
from torch import nn

from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep


class Quadratic(nn.Module):
    """L(w) = w' A w / 2 for any input; A is diagonal."""

    def __init__(self, w=(3.0, 1.0), diagonal=(1.0, 4.0)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.diagonal = torch.tensor(diagonal, dtype=torch.float64)

    def forward(self, inputs):
        return (0.5 * (self.diagonal * self.w**2).sum()).expand(len(inputs), 1)


class Linear(nn.Module):
    """w' x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, inputs):
        return (inputs @ self.w)[:, None]


def mean_output(outputs, targets):
    return outputs.mean()


def squared_error(outputs, targets):
    return ((outputs[:, 0] - targets) ** 2).mean() / 2


def batch_of(inputs, targets=None):
    inputs = torch.as_tensor(inputs, dtype=torch.float64)
    targets = torch.zeros(len(inputs), dtype=torch.float64) if targets is None else torch.as_tensor(targets)
    return Batch(inputs, targets)


ONE = batch_of([[0.0]])


def make_step(model, loss, *, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, objective=None, **sam):
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    return SamStep(Objective(model, loss, **(objective or {})), optimizer, **sam)


def quadratic(rho=0.5, steps=1, **options):
    """Take steps on `Quadratic` from w = (3, 1); return the model and the statistics of the last step."""
    model = Quadratic()
    step = make_step(model, mean_output, **options)
    for _ in range(steps):
        stats = step(ONE, rho)
    return model, stats
