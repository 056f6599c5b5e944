"""Joint passes of several networks against passes of their own."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.shake_shake import ShakeShakeNet
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import Plain, Sam
from sam_runner.sam.network import joint_passes
from sam_runner.sam.network.joint_passes import JointPasses, explain_impossible_passes
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from tests.sam.test_family import METHODS

SEEDS, STEPS, RHO = 3, 5, 0.1


class Net(nn.Module):
    """Batch norm, a weight that is used twice, one that is constant and one that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.square, self.unused = nn.Linear(6, 6), nn.Linear(2, 2)
        self.constant = nn.Parameter(torch.randn(6), requires_grad=False)

    def forward(self, inputs):
        hidden = F.relu(self.norm(self.first(inputs))) + self.constant
        return self.last(self.square(self.square(hidden)))


def networks(make=Net, dtype=torch.float64):
    torch.manual_seed(0)
    return [make().to(dtype) for _ in range(SEEDS)]


def examples(number, shape=(5,), dtype=torch.float64):
    generator = torch.Generator().manual_seed(number)
    return [
        Batch(torch.randn(12, *shape, generator=generator, dtype=dtype), torch.randint(4, (12,), generator=generator))
        for _ in range(STEPS)
    ]


def train(model, batches, forward=None, make_method=Sam, **options):
    """Train a network; return the numbers of the steps."""
    objective = Objective(model, F.cross_entropy, forward=forward, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
    step = SamStep(objective, optimizer, make_method(), grad_clip=1.0)
    stats = [step(batch, RHO, number) for number, batch in enumerate(batches)]
    return torch.tensor([[s.loss, s.loss_perturbed, s.grad_norm, s.eps_norm, s.passes.gradient] for s in stats])


def train_both(alone, together, batches, **options):
    """Train equal networks alone and together; return the numbers of both."""
    expected = [train(model, found, **options) for model, found in zip(alone, batches, strict=True)]
    joint, numbers = JointPasses(lambda outputs: outputs), [None] * len(together)

    def work(number):
        forward = joint.forward(together[number])
        numbers[number] = train(together[number], batches[number], forward, **options)

    errors = joint.run([lambda number=number: work(number) for number in range(len(together))])
    assert errors == [None] * len(together)
    return expected, numbers


def assert_equal(alone, together, tolerance):
    for one, other in zip(alone, together, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["sam", "plain", *METHODS])
def test_every_method_trains_as_alone(name):
    alone = networks()
    together = copy.deepcopy(alone)
    make = {"sam": Sam, "plain": Plain, **METHODS}[name]
    expected, found = train_both(alone, together, [examples(n) for n in range(SEEDS)], make_method=make)
    assert_equal(alone, together, 1e-10)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_micro_batches_convolutions_and_channels_last(monkeypatch):
    sizes = []
    forward = joint_passes._forward
    monkeypatch.setattr(joint_passes, "_forward", lambda found, read: sizes.append(len(found)) or forward(found, read))
    alone = [model.to(memory_format=torch.channels_last) for model in networks(lambda: SmallCNN(4, 3, width=4))]
    together = copy.deepcopy(alone)
    batches = [examples(n, (3, 6, 6)) for n in range(SEEDS)]
    train_both(alone, together, batches, num_chunks=2, batch_size=12)
    assert_equal(alone, together, 1e-10)
    assert sizes == [SEEDS] * (2 * 2 * STEPS)  # two passes, two micro-batches each: one joint pass for all networks


def test_the_gradient_in_float32_differs_by_rounding():
    alone = networks(lambda: SmallCNN(4, 3, width=8), torch.float32)
    together = copy.deepcopy(alone)
    train_both(alone, together, [examples(n, (3, 6, 6), torch.float32)[:1] for n in range(SEEDS)])
    assert_equal(alone, together, 1e-5)


def test_a_network_that_ends_earlier_leaves_the_others():
    alone = networks()
    together = copy.deepcopy(alone)
    batches = [examples(n)[: STEPS - 2 * (n == 1)] for n in range(SEEDS)]
    batches[2][-1] = batches[2][-1].split(7)[0]  # a batch of another size makes a pass of its own
    train_both(alone, together, batches)
    assert_equal(alone, together, 1e-10)


def test_each_thread_has_random_numbers_of_its_own():
    models, joint, drawn = networks(), JointPasses(lambda outputs: outputs), {}

    def draw(number):
        torch.manual_seed(number)
        random.seed(number)
        forward = joint.forward(models[number])
        values = []
        for batch in examples(number):
            forward(batch.inputs).sum().backward()
            values += [float(torch.rand(())), random.random()]
        drawn[number] = values

    assert joint.run([lambda number=number: draw(number) for number in range(SEEDS)]) == [None] * SEEDS
    for number, values in drawn.items():
        torch.manual_seed(number)
        random.seed(number)
        assert values == [value for _ in range(STEPS) for value in (float(torch.rand(())), random.random())]


def test_second_derivatives_are_refused():
    models, joint = networks(), JointPasses(lambda outputs: outputs)

    def differentiate(model):
        loss = joint.forward(model)(torch.ones(3, 5, dtype=torch.float64)).square().sum()
        grads = torch.autograd.grad(loss, model.first.weight, create_graph=True)
        torch.autograd.backward(grads[0].square().sum())

    errors = joint.run([lambda model=model: differentiate(model) for model in models])
    assert all("differentiate twice" in str(error) for error in errors), errors


class Branching(nn.Linear):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if outputs.sum() > 0 else -outputs


class Detaching(nn.Linear):
    """Not a function of the given weights alone: it keeps a view of its own."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.kept = [self.weight]

    def forward(self, inputs):
        return F.linear(inputs, self.kept[0], self.bias)


class Drawing(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) * random.random()


@pytest.mark.parametrize(
    ("make", "shape", "reason"),
    [
        (Net, (5,), ""),
        (lambda: SmallCNN(4, 3, width=4), (3, 6, 6), ""),
        (lambda: SmallCNN(4, 3, width=4, dropout=0.5), (3, 6, 6), "it draws random numbers"),
        (lambda: ShakeShakeNet(4, 3, depth=8, width=4), (3, 8, 8), "it draws random numbers"),
        (lambda: Drawing(5, 4), (5,), "it draws random numbers"),
        (lambda: Branching(5, 4), (5,), "data-dependent control flow"),
        (lambda: Detaching(5, 4), (5,), "differs from that of a pass of its own"),
    ],
)
def test_a_network_that_cannot_make_joint_passes_is_found(make, shape, reason):
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model.state_dict())
    found = explain_impossible_passes(model, torch.randn(4, *shape), lambda outputs: outputs)
    assert reason in found if reason else found == ""
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.gpu
def test_joint_passes_on_a_gpu():
    alone = [model.cuda() for model in networks()]
    together = copy.deepcopy(alone)
    batches = [[Batch(batch.inputs.cuda(), batch.targets.cuda()) for batch in examples(n)] for n in range(SEEDS)]
    train_both(alone, together, batches)
    assert_equal(alone, together, 1e-10)
