"""SAM with SGD for any differentiable loss of a weight vector, in plain float64; independent of sam_runner."""

import torch


def unflatten(model, weights):
    """Return the parameters of `model` by name, as views of one vector."""
    named = dict(model.named_parameters())
    parts = weights.split([param.numel() for param in named.values()])
    return {name: part.view(param.shape) for (name, param), part in zip(named.items(), parts, strict=True)}


def gradient(loss, w):
    w = w.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(w), w)[0]


def sam_weights(model, loss, batches, *, rho, lr):
    """Return the weights after one SGD step per batch, as one float64 vector.

    Each batch is a list of groups, each a tuple (arguments of the loss, number of examples); every group has its own
    eps (eq. 2, p = 2), and the final gradient is the groups' mean, weighted by examples. `loss` maps (parameters by
    name, *arguments) to the mean loss.
    """
    w = torch.cat([param.detach().flatten() for param in model.parameters()]).double()
    for groups in batches:
        total, count = torch.zeros_like(w), sum(size for _, size in groups)
        for arguments, size in groups:

            def of_group(weights, arguments=arguments):
                return loss(unflatten(model, weights), *arguments)

            g = gradient(of_group, w)
            total += gradient(of_group, w + rho * g / g.norm()) * size / count
        w = w - lr * total
    return w
