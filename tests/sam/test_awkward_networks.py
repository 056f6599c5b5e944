"""Networks of any kind: the step equals Algorithm 1 in plain float64, and all state belongs to the pass at w."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import KStep
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from tests.oracles.awkward_networks import PARTS, WIDTH, Network, Switch, Tempered, reference_step

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


def compare_with_the_reference(names, *, rho, p=2.0, ascent_steps=1, group_size=COUNT, chunks=1, loss=None, held=None):
    pair = nn.ModuleList([Network(names), PlainLoss() if loss is None else loss])
    named = {name: param for name, param in pair.named_parameters() if param.requires_grad}
    trained = [name for name in named if held is None or held in name]
    expected, chunk_size = copy.deepcopy(pair), -(-COUNT // chunks)
    options = {"rho": rho, "p": p, "ascent_steps": ascent_steps, "group_size": group_size, "chunk_size": chunk_size}
    seed()
    Switch.checkpoints = False
    for batch in batches():
        expected = reference_step(expected, trained, batch, lr=LR, **options)
    Switch.checkpoints = True
    objective = Objective(pair[0], pair[1], num_chunks=chunks, batch_size=COUNT)
    optimizer = torch.optim.SGD([named[name] for name in trained], lr=LR)
    step = SamStep(
        objective, optimizer, KStep(ascent_steps, p=p), group_size=None if group_size == COUNT else group_size
    )
    seed()
    for batch in batches():
        step(Batch(*batch), rho)
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
