"""Algorithm 1 in NumPy, float64, for a network with one hidden layer; independent of sam_runner.

Gradients are written by hand; weights are one vector. It is written from the paper's equations, slowly and plainly.
"""

import numpy as np


def unpack(w, inputs, hidden, classes):
    ends = np.cumsum([hidden * inputs, hidden, classes * hidden, classes])
    first, first_bias, last, last_bias = np.split(w, ends[:-1])
    return first.reshape(hidden, inputs), first_bias, last.reshape(classes, hidden), last_bias


def loss_and_gradient(w, x, y, hidden, classes):
    """Return the mean cross-entropy of softmax(V tanh(U x + b) + c) and its gradient."""
    first, first_bias, last, last_bias = unpack(w, x.shape[1], hidden, classes)
    activation = np.tanh(x @ first.T + first_bias)
    logits = activation @ last.T + last_bias
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -log_probabilities[np.arange(len(y)), y].mean()
    error = (np.exp(log_probabilities) - np.eye(classes)[y]) / len(y)
    back = (error @ last) * (1 - activation**2)
    gradient = np.concatenate([(back.T @ x).ravel(), back.sum(0), (error.T @ activation).ravel(), error.sum(0)])
    return loss, gradient


def perturbation(g, rho, p):
    """Return eps of eq. 2."""
    if not g.any():
        return np.zeros_like(g)
    if p == np.inf:
        return rho * np.sign(g)
    if p == 1:
        top = np.abs(g) == np.abs(g).max()
        return rho * np.sign(g) * top / top.sum()
    q = p / (p - 1)
    return rho * np.sign(g) * np.abs(g) ** (q - 1) / (np.abs(g) ** q).sum() ** (1 / p)


def sam_gradient(w, x, y, hidden, classes, rho, p=2.0, ascent_steps=1, projected=False, decay_in_loss=0.0):
    """Return the gradient at w + eps (eq. 3), with eps from `ascent_steps` gradients."""

    def gradient(at):
        return loss_and_gradient(at, x, y, hidden, classes)[1] + decay_in_loss * at

    eps = np.zeros_like(w)
    for step in range(ascent_steps):
        new = perturbation(gradient(w + eps), rho, p)
        if projected and step > 0:
            new = eps + new
            new *= min(1.0, rho / max(np.linalg.norm(new), 1e-300))
        eps = new
    return gradient(w + eps)


def train(
    w, batches, hidden, classes, *, rho, lr, momentum=0.0, nesterov=False, decay=0.0, group=None, clip=None, **sam
):
    """Return the weights after each batch: SGD as torch documents it, one eps per group, mean of the gradients."""
    velocity, path = None, []
    for x, y in batches:
        size = group or len(y)
        total = np.zeros_like(w)
        for start in range(0, len(y), size):
            part = slice(start, start + size)
            gradient = sam_gradient(w, x[part], y[part], hidden, classes, rho, **sam)
            total += gradient * len(y[part]) / len(y)
        if clip is not None:
            total *= min(1.0, clip / np.linalg.norm(total))
        total = total + decay * w
        velocity = total if velocity is None else momentum * velocity + total
        direction = total + momentum * velocity if nesterov else velocity
        w = w - lr * (direction if momentum else total)
        path.append(w)
    return path
