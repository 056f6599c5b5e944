"""Networks of any kind: the step equals Algorithm 1 in plain float64, and all state belongs to the pass at w."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.sam import methods as family
from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import KStep
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.errors import TrainingError
from tests.oracles.awkward_networks import (
    ONCE,
    PARTS,
    WIDTH,
    Network,
    Switch,
    Tempered,
    asam_epsilon,
    fisher_epsilon,
    layerwise_epsilon,
    reference_step,
)

LR = 0.1
COUNT = 12


class PlainLoss(nn.Module):
    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels)


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(COUNT, WIDTH, dtype=torch.float64, generator=generator), torch.arange(COUNT) % 3)
        for _ in range(count)
    ]


def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def mean_of_both(final, first):
    return [0.8 * a + 0.2 * b for a, b in zip(final, first, strict=True)]


def without_orthogonal_part(final, first):
    product, square = (sum((a * b).sum() for a, b in zip(part, final, strict=True)) for part in (first, final))
    return [a - 0.4 * (b - product / square * a) for a, b in zip(final, first, strict=True)]


def weighted_sharpness(final, first):
    return [b + 9 * (a - b) for a, b in zip(final, first, strict=True)]


METHODS = {  # method, reference of eps, reference of the final gradient, numbers of the steps that perturb
    "asam": (family.Asam, asam_epsilon, None, (0, 1)),
    "fisher_sam": (family.FisherSam, fisher_epsilon, None, (0, 1)),
    "layerwise_sam": (family.LayerwiseSam, layerwise_epsilon, None, (0, 1)),
    "friendly_sam": (lambda: family.FriendlySam(0.0), None, None, (0, 1)),
    "esam": (lambda: family.Esam(1.0, 1.0), None, None, (0, 1)),
    "gsam": (family.Gsam, None, without_orthogonal_part, (0, 1)),
    "gradient_norm": (family.GradientNorm, None, mean_of_both, (0, 1)),
    "wsam": (family.Wsam, None, weighted_sharpness, (0, 1)),
    "looksam": (lambda: family.LookSam(1), None, None, (0, 1)),
    "interval": (lambda: family.Interval(2), None, None, (0,)),
    "late": (lambda: family.Late(0.5, total_steps=2, around=family.Asam()), asam_epsilon, None, (1,)),
    "random_sam": (lambda: family.RandomSam(0.0, 1.0, total_steps=2, seed=0), None, None, (1,)),
    "ae_sam": (
        lambda: family.AeSam(-1e9, 1e9, total_steps=2, around=family.Gsam()), None, without_orthogonal_part, (0,)
    ),
}  # fmt: skip


def compare_with_the_reference(
    names,
    *,
    rho,
    p=2.0,
    ascent_steps=1,
    group_size=COUNT,
    chunks=1,
    loss=None,
    held=None,
    method=None,
):
    make, eps_of, combine, perturbing = (
        METHODS[method] if method else (lambda: KStep(ascent_steps, p=p), None, None, (0, 1))
    )
    pair = nn.ModuleList([Network(names), PlainLoss() if loss is None else loss])
    named = {name: param for name, param in pair.named_parameters() if param.requires_grad}
    trained = [name for name in named if held is None or held in name]
    expected, chunk_size = copy.deepcopy(pair), -(-COUNT // chunks)
    options = {"rho": rho, "p": p, "ascent_steps": ascent_steps, "group_size": group_size, "chunk_size": chunk_size}
    seed()
    Switch.checkpoints = False
    for number, batch in enumerate(batches()):
        radius = rho if number in perturbing else 0.0
        expected = reference_step(
            expected, trained, batch, lr=LR, **options | {"rho": radius}, eps_of=eps_of, combine=combine
        )
    Switch.checkpoints = True
    objective = Objective(pair[0], pair[1], num_chunks=chunks, batch_size=COUNT)
    optimizer = torch.optim.SGD([named[name] for name in trained], lr=LR)
    step = SamStep(objective, optimizer, make(), group_size=None if group_size == COUNT else group_size)
    seed()
    for number, batch in enumerate(batches()):
        step(Batch(*batch), rho, number)
    tolerance = 1e-5 if "single" in names else 1e-9
    state = expected.state_dict()
    assert pair.state_dict().keys() == state.keys()
    for name, value in pair.state_dict().items():
        assert torch.allclose(value.double(), state[name].double(), rtol=0, atol=tolerance), name


@pytest.mark.parametrize("options", [{}, {"group_size": 5, "chunks": 4}, {"ascent_steps": 2}])
@pytest.mark.parametrize("name", PARTS)
def test_every_part_alone(name, options):
    compare_with_the_reference([name], rho=0.3, **options)


@pytest.mark.parametrize("name", ["shared gradients", "joined", "sparse", "recomputed", "range", "hidden"])
def test_parts_of_a_batch_at_rho_zero(name):
    compare_with_the_reference([name], rho=0.0, group_size=5, chunks=4)


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(PARTS)), min_size=1, max_size=4),
    rho=st.sampled_from([0.0, 0.05, 0.5]),
    p=st.sampled_from([2.0, 1.5]),
    ascent_steps=st.integers(1, 3),
    group_size=st.sampled_from([COUNT, 6, 5]),
    chunks=st.sampled_from([1, 4]),
    loss=st.sampled_from([None, Tempered()]),
    held=st.sampled_from([None, "head"]),
)
def test_networks_of_any_parts(names, rho, p, ascent_steps, group_size, chunks, loss, held):
    options = {"p": p, "ascent_steps": ascent_steps, "group_size": group_size, "chunks": chunks, "held": held}
    compare_with_the_reference(names, rho=rho, loss=copy.deepcopy(loss), **options)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=3, deadline=None)
@given(
    names=st.lists(st.sampled_from(list(PARTS)), min_size=1, max_size=4),
    rho=st.sampled_from([0.05, 0.5]),
    group_size=st.sampled_from([COUNT, 5]),
    chunks=st.sampled_from([1, 4]),
    held=st.sampled_from([None, "head"]),
)
def test_every_method_with_networks_of_any_parts(method, names, rho, group_size, chunks, held):
    compare_with_the_reference(names, rho=rho, group_size=group_size, chunks=chunks, held=held, method=method)


@pytest.mark.parametrize(
    "name", ["hidden", "counting", "batch norm", "recomputed range", "torch numbers", "own python numbers"]
)
@pytest.mark.parametrize("make", [family.MomentumSam, family.Esam, family.LookSam, family.FriendlySam])
def test_state_and_evaluations_leave_a_network_as_a_plain_step_does(make, name):
    """At a radius of almost 0 all passes see what the pass at w sees: buffers, masks and weights are SGD's."""
    networks = []
    for method, rho in ((make(), 1e-30), (family.Plain(), 0.0)):
        network = Network([name])
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9)
        step = SamStep(Objective(network, F.cross_entropy, num_chunks=2, batch_size=COUNT), optimizer, method)
        seed()
        for number, batch in enumerate(batches(3)):
            step(Batch(*batch), rho, number)
        networks.append((network, random.random(), torch.rand(())))
    (ours, *draws), (plain, *others) = networks
    assert draws == others
    for name, buffer in ours.named_buffers():
        assert torch.allclose(
            buffer, dict(plain.named_buffers())[name], rtol=0, atol=0.2 if make is family.Esam else 1e-9
        )


@pytest.mark.parametrize("name", ONCE)
def test_a_function_that_can_be_differentiated_once_is_refused_by_its_name(name):
    """At the end of a network with a linear loss, torch would leave its second derivative out without a word."""
    model, (inputs, labels) = ONCE[name](), batches(1)[0]
    before = copy.deepcopy(model.state_dict())
    step = SamStep(
        Objective(model, lambda outputs, _: outputs.mean()),
        torch.optim.SGD(model.parameters(), lr=LR),
        family.SecondOrder(),
    )
    with pytest.raises(TrainingError, match=r"second-order term needs .*SquareOnce is marked.*\n  use optimizer"):
        step(Batch(inputs, labels), 0.5)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    loss = MeanLoss(model, lambda outputs, _: outputs.mean(), Batch(inputs, labels), chunk_size=5, dtype=torch.float64)
    with pytest.raises(TrainingError, match=r"Hessian-vector product needs .*SquareOnce is marked once_differentiable"):
        loss.hessian_products([loss.weights])
    assert SamStep(step.objective, step.optimizer)(Batch(inputs, labels), 0.5).finite.all()


def test_the_second_order_term_of_weight_norm_is_refused():
    """torch differentiates the norm in its backward pass as a constant."""
    (inputs, labels), layer = batches(1)[0], nn.Linear(math.prod(batches(1)[0][0].shape[1:]), 3)
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(layer)).to(inputs.dtype)
    step = SamStep(
        Objective(model, lambda outputs, _: outputs.square().mean()),
        torch.optim.SGD(model.parameters(), lr=LR),
        family.SecondOrder(),
    )
    with pytest.raises(TrainingError, match=r"second-order term needs .*weight_norm is wrong"):
        step(Batch(inputs, labels), 0.5)
