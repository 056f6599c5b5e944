"""The SAM family in NumPy, float64, for the network of `numpy_sam`; independent of sam_runner.

Each method is written from its paper's formulas, on one weight vector. A method is a generator: it gets, for each step,
(t, w, lr) and the functions `gradient(at)` and `losses(at)` of the batch, and yields the gradient for SGD.
"""

import numpy as np

from tests.oracles.numpy_sam import loss_and_gradient, unpack

HIDDEN = 7
NUM_STEPS = 6


def ball(direction, rho):
    return rho * direction / np.linalg.norm(direction)


def asam(problem, rho, eta=0.01):
    for w, gradient, _ in problem.steps():
        g = gradient(w)
        t = np.where(problem.is_weight, np.abs(w) + eta, 1.0)
        yield gradient(w + rho * t**2 * g / np.linalg.norm(t * g))


def fisher_sam(problem, rho, eta=1.0):
    for w, gradient, _ in problem.steps():
        g = gradient(w)
        inverse = 1 / (1 + eta * g**2)
        yield gradient(w + rho * inverse * g / np.sqrt(g @ (inverse * g)))


def friendly_sam(problem, rho, sigma=1.0, decay=0.95):
    m = np.zeros_like(problem.w)
    for w, gradient, _ in problem.steps():
        g = gradient(w)
        m = decay * m + (1 - decay) * g
        yield gradient(w + ball(g - sigma * m, rho))


def layerwise_sam(problem, rho, scale_by_weights=False):
    for w, gradient, _ in problem.steps():
        g = gradient(w)
        eps = np.zeros_like(w)
        for part in problem.tensors:
            length = np.linalg.norm(w[part]) if scale_by_weights else 1.0
            eps[part] = rho * length * g[part] / np.linalg.norm(g[part])
        yield gradient(w + eps)


def momentum_sam(problem, rho, momentum=0.9):
    v = np.zeros_like(problem.w)
    for w, gradient, _ in problem.steps():
        g = gradient(w - ball(v, rho) if v.any() else w)
        v = momentum * v + g
        yield v


def gsam(problem, rho, alpha=0.4, rho_min=0.0):
    for t, (w, gradient, _) in enumerate(problem.steps()):
        factor = problem.rates[t] / max(problem.rates)
        g = gradient(w)
        perturbed = gradient(w + ball(g, rho_min + (rho - rho_min) * factor))
        orthogonal = g - (g @ perturbed) / (perturbed @ perturbed) * perturbed
        yield perturbed - alpha * orthogonal


def gradient_norm(problem, rho, alpha=0.8):
    for w, gradient, _ in problem.steps():
        g = gradient(w)
        yield (1 - alpha) * g + alpha * gradient(w + ball(g, rho))


def wsam(problem, rho, gamma=0.9):
    """With SGD without momentum, the coupled and the decoupled form have the same steps."""
    c = gamma / (1 - gamma)
    for w, gradient, _ in problem.steps():
        g = gradient(w)
        yield g + c * (gradient(w + ball(g, rho)) - g)


def looksam(problem, rho, k=2, alpha=0.7):
    v = None
    for t, (w, gradient, _) in enumerate(problem.steps()):
        g = gradient(w)
        if t % k == 0:
            perturbed = gradient(w + ball(g, rho))
            cosine = g @ perturbed / np.linalg.norm(g) / np.linalg.norm(perturbed)
            v = perturbed - np.linalg.norm(perturbed) * cosine * g / np.linalg.norm(g)
            yield perturbed
        else:
            yield g + alpha * np.linalg.norm(g) / np.linalg.norm(v) * v


def interval(problem, rho, k=2):
    for t, (w, gradient, _) in enumerate(problem.steps()):
        g = gradient(w)
        yield gradient(w + ball(g, rho)) if t % k == 0 else g


def late(problem, rho, fraction=0.5, first=False):
    count = round(fraction * NUM_STEPS)
    for t, (w, gradient, _) in enumerate(problem.steps()):
        g = gradient(w)
        yield gradient(w + ball(g, rho)) if (t < count if first else t >= NUM_STEPS - count) else g


def ae_sam(problem, rho, start=1.0, end=-1.0, decay=0.9):
    mean = variance = 0.0
    for t, (w, gradient, _) in enumerate(problem.steps()):
        g = gradient(w)
        mean = decay * mean + (1 - decay) * g @ g
        variance = decay * variance + (1 - decay) * (g @ g - mean) ** 2
        problem.moments = [mean, variance]
        c = start + (end - start) * t / (NUM_STEPS - 1)
        problem.decisions.append(bool(g @ g >= mean + c * np.sqrt(variance)))
        yield gradient(w + ball(g, rho)) if problem.decisions[-1] else g


def esam(problem, rho, masks, beta, gamma=0.5):
    """`masks` are the drawn M of each step."""
    for t, (w, gradient, losses) in enumerate(problem.steps()):
        g = gradient(w)
        at = w + ball(g, rho) * masks[t] / beta
        rise = losses(at) - losses(w)
        chosen = np.sort(np.argsort(-rise)[: round(gamma * len(rise))])
        yield gradient(at, chosen)


class Problem:
    """Batches, weights and the SGD that the methods are steps of.

    Args:
        w: Initial weights, one vector: first weight, first bias, last weight, last bias.
        batches: Pairs (x, y).
        rates: Learning rate of each step.
        inputs: Number of inputs.
        classes: Number of classes.
    """

    def __init__(self, w, batches, rates, inputs, classes):
        self.w, self.batches, self.rates, self.inputs, self.classes = w, batches, rates, inputs, classes
        ends = np.cumsum([HIDDEN * inputs, HIDDEN, classes * HIDDEN, classes])
        self.tensors = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self.is_weight = np.zeros(len(w), dtype=bool)
        self.is_weight[self.tensors[0]] = self.is_weight[self.tensors[2]] = True
        self.decisions, self.moments = [], []

    def steps(self):
        for x, y in self.batches:

            def gradient(at, chosen=slice(None), x=x, y=y):
                return loss_and_gradient(at, x[chosen], y[chosen], HIDDEN, self.classes)[1]

            def losses(at, x=x, y=y):
                first, first_bias, last, last_bias = unpack(at, self.inputs, HIDDEN, self.classes)
                logits = np.tanh(x @ first.T + first_bias) @ last.T + last_bias
                return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]

            yield self.w, gradient, losses

    def path(self, method, rho, **options):
        """Return the weights after each step of a method."""
        path = []
        for t, gradient in enumerate(method(self, rho, **options)):
            self.w = self.w - self.rates[t] * gradient
            path.append(self.w)
        return path
