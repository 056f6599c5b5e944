"""Checkpoints hold the state of a method, and a resumed run has its bits."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from sam_runner.sam.step import SamStep
from sam_runner.training import loop
from sam_runner.training.builders.run import build_run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.state import Outputs, Progress, restore_state, save_checkpoint
from tests.helpers import TINY, config_of
from tests.oracles.methods import Drift


def run_with(method):
    run = build_run(config_of(*TINY, "optimizer=sam", "precision=fp32"))
    return replace(run, step=SamStep(run.step.objective, run.step.optimizer, method))


def train(run, progress, count):
    """Take `count` steps of the first epoch."""
    batches = run.train.epoch(0, start=progress.batch)
    for _ in range(count):
        loop._train_step(run, mock.Mock(), next(batches), progress)


def bits(run):
    return [*run.model.state_dict().values(), *(part for parts in run.step.method.state.values() for part in parts)]


def test_a_resumed_run_has_the_bits_of_the_methods_state(tmp_path):
    whole, first = run_with(Drift()), run_with(Drift())
    train(whole, Progress(), 5)
    progress = Progress()
    train(first, progress, 3)
    checkpoints = CheckpointFolder(tmp_path)
    save_checkpoint(first, Outputs(mock.Mock(flush=lambda: 0), checkpoints), progress)
    second = run_with(Drift())
    progress = restore_state(second, checkpoints.load_latest())
    assert all(torch.equal(a, b) for a, b in zip(bits(first), bits(second), strict=True))
    assert any(part.any() for part in second.step.method.state["mean"])
    train(second, progress, 2)
    assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(second), strict=True))
    with pytest.raises(ValueError, match="the method sam has"):
        restore_state(build_run(config_of(*TINY, "optimizer=sam")), checkpoints.load_latest())
