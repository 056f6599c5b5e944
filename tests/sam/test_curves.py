"""One frozen training curve, followed in many ways: float32, micro-batches, compiled, fused, captured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from tests.oracles.curves import CURVES, NUM_STEPS, losses

FROZEN = json.loads((Path(__file__).parents[1] / "assets" / "curves.json").read_text())


def distance(curve, name):
    return np.abs(np.array(curve) - np.array(FROZEN[name])).max()


@pytest.mark.parametrize("name", CURVES)
def test_float64_follows_the_frozen_curve(name):
    assert np.array(FROZEN[name]).shape == (NUM_STEPS, 2)
    assert distance(losses(name), name) < 1e-9


@pytest.mark.parametrize("name", CURVES)
def test_float32_follows_the_frozen_curve(name):
    assert distance(losses(name, dtype=torch.float32), name) < 1e-5


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("chunks", [2, 5])
def test_accumulation_follows_the_frozen_curve(name, chunks):
    assert distance(losses(name, chunks=chunks), name) < 1e-9


def test_plain_training_in_groups_follows_the_same_curve(monkeypatch):
    monkeypatch.setitem(CURVES, "sgd", (0.0, {"group_size": 16}))
    assert distance(losses("sgd"), "sgd") < 1e-9


@pytest.mark.parametrize("name", CURVES)
def test_compiled_follows_the_frozen_curve(name):
    torch._dynamo.reset()
    assert distance(losses(name, dtype=torch.float32, compiled=True), name) < 1e-5


@pytest.mark.parametrize("name", CURVES)
def test_fused_follows_the_frozen_curve(name):
    assert distance(losses(name, fused=True), name) < 1e-9


@pytest.mark.parametrize("name", CURVES)
def test_captured_follows_the_frozen_curve(name):
    """The learning rate is read from a float32 tensor."""
    captured = []

    def route(step):
        captured.append(CapturedStep(step, EagerRecorder()))
        return captured[0]

    assert distance(losses(name, fused=True, route=route), name) < 1e-7
    assert len(captured[0]._recordings) == 1


def test_curves_are_three_different_ones():
    first, second, third = (np.array(FROZEN[name]) for name in CURVES)
    assert np.abs(first - second).max() > 1e-2
    assert np.abs(second - third).max() > 1e-3
    assert (second[:, 1] > second[:, 0]).all()
