"""Checkpoints hold the state of a method, and a resumed run has its bits."""

import logging
from dataclasses import replace
from unittest import mock

import pytest
import torch

from sam_runner.sam.methods import Sam
from sam_runner.sam.step import SamStep
from sam_runner.training import loop
from sam_runner.training.builders.run import build_run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.state import Outputs, Progress, restore_state, save_checkpoint
from sam_runner.utils.signals import StopRequest
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


class Growing(Sam):
    """Forgets in a continued run how large its radius was; unhashable, as dataclasses are."""

    name, needs_number = "growing", True
    factor, _last = 1.0, 0.0
    __hash__ = None

    def radius(self, rho, number, lr):
        self.factor, self._last = 1.1 * self.factor, rho
        return rho * self.factor


def test_attributes_that_a_continued_run_would_lose_are_warned_of_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sam_runner"), "propagate", True)
    run = run_with(Growing())
    run.step.optimizer.count, step = 0, run.step.optimizer.step
    monkeypatch.setattr(run.step.optimizer, "step", lambda: (step(), vars(run.step.optimizer).update(count=1)))
    run = replace(run, epochs=2, max_steps=100)
    loop.fit(run, Outputs(mock.Mock(flush=lambda: 0), CheckpointFolder(tmp_path)), Progress(), StopRequest())
    method, optimizer = [message for message in caplog.messages if "changes its attributes" in message]
    assert method.startswith("Growing changes its attributes factor, which checkpoints do not hold")
    assert optimizer.startswith("SGD changes its attributes count, which")
    caplog.clear()
    loop.fit(
        run_with(Drift()), Outputs(mock.Mock(flush=lambda: 0), CheckpointFolder(tmp_path)), Progress(), StopRequest()
    )
    assert not [message for message in caplog.messages if "changes its attributes" in message]


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
