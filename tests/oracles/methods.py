"""Methods that test the interface of methods, and a reference of one in plain float64."""

import torch
from torch.nn import functional as F

from sam_runner.sam.method import Method
from sam_runner.sam.perturbation import Perturbation, perturbation
from tests.oracles.plain_sam import gradient, unflatten

DECAY, PULL = 0.8, 0.3


class Drift(Method):
    """eps along g minus its running mean; the base optimizer gets g_eps + PULL * (mean - g); plain every third step."""

    name = "drift"
    combines = True
    needs_number = True

    def __init__(self, *, sync_perturbation=False):
        super().__init__()
        self.sync_perturbation = sync_perturbation

    def prepare(self, objective):
        self.state["mean"] = [torch.zeros_like(param) for param in objective.params]

    def radius(self, rho, number, lr):
        return 0.0 if number % 3 == 2 else rho * lr

    def passes(self, number):
        return 1 if number % 3 == 2 else 2

    def perturb(self, grads, group):
        norm = group.context.norm(grads)
        scaled = torch._foreach_mul(self.state_tensors("mean"), group.context.loss_scale)
        torch._foreach_sub_(grads, scaled)
        eps = perturbation(grads, group.context.rho, 2.0, group.context.objective.shards)
        return Perturbation(eps.direction, eps.scale, eps.norm, norm)

    def combine(self, final, first, context):
        mean, scale = self.state_tensors("mean"), context.loss_scale
        g = final if first is None else first
        new = [DECAY * old + (1 - DECAY) * part / scale for old, part in zip(mean, g, strict=True)]
        self.staged["mean"] = new
        for target, part, old in zip(final, [part.clone() for part in g], mean, strict=True):
            target.add_(old * scale - part, alpha=PULL)


class Alternate(Method):
    """SAM that leaves out the second pass of odd steps, by a decision on the host in each group."""

    name = "alternate"
    needs_number = True
    capture_blocker = "the number of the step decides on the host"

    def perturb(self, grads, group):
        return perturbation(grads, group.context.rho) if group.context.number % 2 == 0 else None


def drift_weights(model, batches, *, groups, rho, lr):
    """Return the weights after SGD with `Drift` as one float64 vector.

    `batches` are pairs (inputs, targets); `groups` is the number of groups of each batch.
    """
    w = torch.cat([param.detach().flatten() for param in model.parameters()]).double()
    mean = torch.zeros_like(w)

    def loss(weights, inputs, targets):
        outputs = torch.func.functional_call(model, unflatten(model, weights), (inputs,))
        return F.cross_entropy(outputs, targets)

    for number, (inputs, targets) in enumerate(batches):
        parts = list(zip(inputs.chunk(groups), targets.chunk(groups), strict=True))
        firsts = [gradient(lambda v, part=part: loss(v, *part), w) for part in parts]
        g = final = torch.stack(firsts).mean(0)
        if number % 3 != 2:
            there = [w + rho * lr * (first - mean) / (first - mean).norm() for first in firsts]
            pairs = zip(there, parts, strict=True)
            final = torch.stack([gradient(lambda v, part=part: loss(v, *part), at) for at, part in pairs]).mean(0)
        w = w - lr * (final + PULL * (mean - g))
        mean = DECAY * mean + (1 - DECAY) * g
    return w
