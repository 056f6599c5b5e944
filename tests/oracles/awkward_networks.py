"""Networks of awkward parts, and one SAM step for any of them in plain float64; independent of sam_runner.

A part maps (N, WIDTH) to (N, WIDTH). The reference makes every pass on a copy of the network, so buffers and generators
of a module start each pass where the first pass started.
"""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH = 4


class Switch:
    """Whether networks recompute in the backward pass; the reference never does."""

    checkpoints = True


def parameter(*shape, dtype=torch.float64):
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64).to(dtype) / 2)


class Linear(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, WIDTH, dtype=torch.float64)


class Tied(Linear):
    def forward(self, x):
        return super().forward(super().forward(x).tanh())


class SharedGradients(nn.Module):
    """Autograd gives the two parameters one storage as gradients, and both all of it."""

    def __init__(self):
        super().__init__()
        self.row, self.column = parameter(1, WIDTH), parameter(WIDTH, 1)

    def forward(self, x):
        return x + (self.row.flatten() + self.column.flatten())


class Joined(nn.Module):
    """The gradients of both parameters are parts of one storage."""

    def __init__(self):
        super().__init__()
        self.first, self.second = parameter(1, WIDTH), parameter(WIDTH - 1, WIDTH)

    def forward(self, x):
        return x @ torch.cat([self.first, self.second])


class Flat(nn.Module):
    """Two parameters beside each other in one storage, as recurrent networks have them on a GPU."""

    def __init__(self):
        super().__init__()
        storage = torch.randn(2 * WIDTH, dtype=torch.float64)
        self.scale, self.shift = nn.Parameter(storage[:WIDTH]), nn.Parameter(storage[WIDTH:])

    def forward(self, x):
        return x * self.scale + self.shift


class Columns(nn.Module):
    """Two parameters that are the columns of one matrix: their memory interleaves."""

    def __init__(self):
        super().__init__()
        columns = torch.randn(WIDTH, 2, dtype=torch.float64)
        self.scale, self.shift = nn.Parameter(columns[:, 0]), nn.Parameter(columns[:, 1])

    def forward(self, x):
        return x * self.scale + self.shift


class Views(nn.Module):
    """Uses of one weight as views: transposed, expanded, with strides."""

    def __init__(self):
        super().__init__()
        self.weight, self.one = nn.Parameter(parameter(WIDTH, WIDTH).data.t()), parameter(1)

    def forward(self, x):
        x = F.linear(x @ self.weight, self.weight) + self.one.expand(WIDTH)
        return x * self.weight.as_strided((WIDTH,), (2,))


class ComplexInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = parameter(WIDTH, 2)

    def forward(self, x):
        return (torch.fft.fft(x) * torch.view_as_complex(self.weight)).abs()


class Range(nn.Module):
    """Moving range of the activations, updated in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("high", torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x):
        self.high.lerp_(x.detach().abs().amax(), 0.3)
        return x.clamp(-self.high, self.high)


class Hidden(nn.Module):
    """State that is carried from pass to pass by another tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", None)

    def forward(self, x):
        before = torch.zeros(WIDTH, dtype=x.dtype) if self.state is None else self.state
        self.state = (before + x.detach().mean(0)) / 2
        return x + before


class SharedBuffer(nn.Module):
    """Two buffers that are views of one storage; one is written, the other read."""

    def __init__(self):
        super().__init__()
        storage = torch.ones(2 * WIDTH, dtype=torch.float64)
        self.register_buffer("written", storage)
        self.register_buffer("read", storage[WIDTH:])

    def forward(self, x):
        self.written[WIDTH:].lerp_(x.detach().mean(0), 0.3)
        return x * self.read


class Counting(nn.Module):
    """A scale that depends on the number of passes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.count += 1
        return x / self.count


class Recomputed(nn.Module):
    def __init__(self, part, reentrant):
        super().__init__()
        self.part, self.reentrant = part, reentrant

    def forward(self, x):
        if not Switch.checkpoints:
            return self.part(x)
        return checkpoint(self.part, x, use_reentrant=self.reentrant)


class Drawing(nn.Module):
    """Random features of one of several generators."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.torch_generator = torch.Generator().manual_seed(3)
        self.numpy_generator = np.random.default_rng(4)
        self.python_generator = random.Random(5)
        self.listed = [np.random.RandomState(6), {"inside": random.Random(7)}]

    def forward(self, x):
        draw = {
            "torch": lambda: torch.rand(()).item(),
            "numpy": np.random.randn,
            "python": random.random,
            "own torch": lambda: torch.rand((), generator=self.torch_generator).item(),
            "own numpy": self.numpy_generator.normal,
            "own python": lambda: self.python_generator.gauss(0, 1),
            "listed": lambda: self.listed[0].randn() + self.listed[1]["inside"].random(),
        }[self.kind]
        return x * torch.tensor([draw() for _ in range(WIDTH)], dtype=x.dtype)


class Frozen(Linear):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused, self.empty = parameter(3), parameter(0, 2)

    def forward(self, x):
        return x + self.empty.sum()


class Sometimes(Linear):
    """A layer that only some passes use, by their inputs."""

    def forward(self, x):
        return super().forward(x) if x[0, 0] > 0 else x


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, WIDTH, sparse=True, dtype=torch.float64)

    def forward(self, x):
        return x + self.table((x[:, 0] > 0).long())


class Single(nn.Module):
    """A float32 parameter in a float64 network."""

    def __init__(self):
        super().__init__()
        self.weight = parameter(WIDTH, WIDTH, dtype=torch.float32)

    def forward(self, x):
        return x + x @ self.weight.double()


class SquareOnce(torch.autograd.Function):
    """x^2, whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Once(nn.Module):
    def forward(self, x):
        return SquareOnce.apply(x)


def batch_norm():
    return nn.BatchNorm1d(WIDTH, dtype=torch.float64)


PARTS = {
    "linear": Linear, "tied": Tied, "shared gradients": SharedGradients, "joined": Joined, "flat": Flat,
    "columns": Columns, "views": Views, "complex inside": ComplexInside, "shared buffer": SharedBuffer,
    "range": Range, "hidden": Hidden, "counting": Counting, "frozen": Frozen, "unused": Unused,
    "sometimes": Sometimes, "sparse": Sparse,
    "single": Single, "batch norm": batch_norm,
    "recomputed": lambda: Recomputed(nn.Sequential(Linear(), batch_norm(), nn.Tanh()), False),
    "recomputed range": lambda: Recomputed(nn.Sequential(Linear(), Range()), False),
    "recomputed in full": lambda: Recomputed(nn.Sequential(Linear(), batch_norm(), nn.Tanh()), True),
    "recomputed dropout": lambda: Recomputed(nn.Sequential(Linear(), nn.Dropout(), batch_norm()), False),
    "recomputed dropout in full": lambda: Recomputed(nn.Sequential(Linear(), nn.Dropout(), batch_norm()), True),
    "recomputed twice": lambda: Recomputed(Recomputed(nn.Sequential(Linear(), batch_norm(), Range()), False), False),
} | {
    f"{kind} numbers": lambda kind=kind: Drawing(kind)
    for kind in ("torch", "numpy", "python", "own torch", "own numpy", "own python", "listed")
}  # fmt: skip


ONCE = {  # networks that must be refused where second derivatives are needed; after the second, only a linear loss
    "inside": lambda: nn.Sequential(Linear(), Once(), Linear()),
    "at the end": lambda: nn.Sequential(Linear(), Once()),
    "recomputed": lambda: nn.Sequential(Linear(), Recomputed(nn.Sequential(Once(), nn.Tanh()), False), Linear()),
    "in one branch": lambda: nn.Sequential(Linear(), Sum(Once(), nn.Tanh())),
}


class Sum(nn.ModuleList):
    def __init__(self, *parts):
        super().__init__(parts)

    def forward(self, x):
        return sum(part(x) for part in self)


class Network(nn.Module):
    def __init__(self, names, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.head = Linear(), nn.Linear(WIDTH, 3, dtype=torch.float64)
        self.parts = nn.ModuleList([PARTS[name]() for name in names])

    def forward(self, x):
        x = self.stem(x)
        for part in self.parts:
            x = part(x).tanh()
        return self.head(x)


class Tempered(nn.Module):
    """A loss with a trained temperature."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, logits, labels):
        return F.cross_entropy(logits * self.temperature, labels)


def epsilon(grads, rho, p):
    """Eq. 2 of the paper for 1 < p < inf."""
    vector, q = torch.cat([grad.double().flatten() for grad in grads]), p / (p - 1)
    eps = rho * vector.sign() * vector.abs() ** (q - 1) / (vector.abs() ** q).sum() ** (1 / p)
    parts = eps.split([grad.numel() for grad in grads])
    return [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]


def copied_gradient(pair, trained, eps, chunks):
    """Return the gradient of a copy of (network, loss) at w + eps, and the copy."""
    pair = copy.deepcopy(pair)
    params = [param for name, param in pair.named_parameters() if name in trained]
    norms = [module for module in pair.modules() if isinstance(module, nn.BatchNorm1d)]
    states = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    totals = [dict.fromkeys(state, 0.0) for state in states]
    with torch.no_grad():
        for param, part in zip(params, eps, strict=True):
            param += part.to(param.dtype)
    count = sum(len(labels) for _, labels in chunks)
    total = [torch.zeros_like(param) for param in params]
    for images, labels in chunks:
        for norm, state in zip(norms, states, strict=True):
            norm.load_state_dict(state, strict=False)
        share = len(labels) / count
        loss = pair[1](pair[0](images), labels)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        total = [t if g is None else t + share * g.to_dense() for t, g in zip(total, grads, strict=True)]
        for norm, sums in zip(norms, totals, strict=True):
            for name, buffer in norm.named_buffers():
                sums[name] = sums[name] + share * buffer
    for norm, sums in zip(norms, totals, strict=True):
        norm.load_state_dict(sums, strict=False)
    return total, pair


def asam_epsilon(grads, rho, weights, names):
    pairs = zip(weights, names, strict=True)
    scales = [w.abs() + 0.01 if "weight" in name and name.startswith("0.") else torch.ones_like(w) for w, name in pairs]
    length = torch.cat([(t * g).flatten() for t, g in zip(scales, grads, strict=True)]).norm()
    return [rho * t**2 * g / length for t, g in zip(scales, grads, strict=True)]


def fisher_epsilon(grads, rho, weights, names):
    raised = [g / (1 + g**2) for g in grads]
    return [rho * r / torch.sqrt(sum((r * g).sum() for r, g in zip(raised, grads, strict=True))) for r in raised]


def layerwise_epsilon(grads, rho, weights, names):
    return [rho * g / g.norm() if g.any() else g for g in grads]


def reference_step(
    pair, trained, batch, *, rho, p, ascent_steps, group_size, chunk_size, lr, eps_of=None, combine=None
):
    """Return a copy of (network, loss) after one SAM step with SGD, or one of a variant.

    `eps_of` maps (g, rho, weights, names) to eps, and `combine` maps (g_eps, g) to the final gradient, both means over
    the groups.
    """
    images, labels = batch
    num_groups = -(-len(labels) // group_size)
    groups = list(zip(images.split(group_size), labels.split(group_size), strict=True))
    final, states, sum_at_w = None, [], [0.0] * len(trained)
    before = copy.deepcopy(pair)
    current = pair
    assert num_groups == len(groups)
    for group in groups:
        chunks = list(zip(*(part.split(chunk_size) for part in group), strict=True))
        generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
        zero = [torch.zeros(())] * len(trained)
        grads, after = copied_gradient(current, trained, zero, chunks)
        at_w = grads
        for _ in range(ascent_steps if rho else 0):
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            torch.set_rng_state(generators[2])
            weights = [param.detach() for name, param in current.named_parameters() if name in trained]
            eps = epsilon(grads, rho, p) if eps_of is None else eps_of(grads, rho, weights, trained)
            grads, _ = copied_gradient(current, trained, eps, chunks)
        share = len(group[1]) / len(labels)
        sum_at_w = [share * grad + old for grad, old in zip(at_w, sum_at_w, strict=True)]
        scaled = [share * grad for grad in grads]
        final = scaled if final is None else [a + b for a, b in zip(final, scaled, strict=True)]
        states.append((share, after))
        current = copy.deepcopy(after)
        for old, new in zip(before.modules(), current.modules(), strict=True):
            if isinstance(old, nn.BatchNorm1d):  # each group starts from the same statistics
                new.load_state_dict(old.state_dict())
    if combine is not None and rho:
        final = combine(final, sum_at_w)
    result = states[-1][1]
    for modules in zip(*(state.modules() for _, state in states), strict=True):
        if isinstance(modules[-1], nn.BatchNorm1d):
            for name in ("running_mean", "running_var"):
                mean = sum(share * getattr(module, name) for (share, _), module in zip(states, modules, strict=True))
                setattr(modules[-1], name, mean)
    with torch.no_grad():
        params = [param for name, param in result.named_parameters() if name in trained]
        for param, grad in zip(params, final, strict=True):
            param -= lr * grad.to(param.dtype)
    return result
