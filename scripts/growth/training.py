"""Quantities of training: weights, tensors of weights, ranks."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import Sam
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.training.checkpoints import CheckpointFolder
from scripts.growth.quantity import Quantity, Work

NUM_STEPS, BATCH, RHO = 5, 32, 0.05
DEPTH = 3  # layers of the networks with more and more weights
WIDTH = 16  # of those with more and more layers


def make_step(layers: list[nn.Module]) -> Work:
    """Return `NUM_STEPS` SAM steps of a network; one step before them does not count."""
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    step = SamStep(Objective(model, nn.functional.cross_entropy), optimizer, Sam())
    width = next(model.parameters()).shape[1]
    batch = Batch(torch.randn(BATCH, width), torch.arange(BATCH) % 10)
    step(batch, RHO)
    return lambda: [step(batch, RHO) for _ in range(NUM_STEPS)]


def make_layers(num_weights: int) -> list[nn.Module]:
    """Return `DEPTH` square layers with about `num_weights` weights."""
    width = round((num_weights / DEPTH) ** 0.5)
    return [nn.Linear(width, width) for _ in range(DEPTH)]


def step_weights(folder: Path, count: int) -> Work:  # noqa: ARG001
    """Take SAM steps with `count` weights."""
    return make_step(make_layers(count))


def step_layers(folder: Path, count: int) -> Work:  # noqa: ARG001
    """Take SAM steps with `count` tensors of weights, all small: a weight and a bias in each layer."""
    return make_step([nn.Linear(WIDTH, WIDTH) for _ in range(count // 2)])


def make_state(num_weights: int) -> dict:
    """Return a state with weights and momenta."""
    weights = {f"layer{number}": layer.weight.data for number, layer in enumerate(make_layers(num_weights))}
    return {"model": weights, "optimizer": {name: torch.zeros_like(weight) for name, weight in weights.items()}}


def save_weights(folder: Path, count: int) -> Work:
    """Save a checkpoint of `count` weights with momentum."""
    state = make_state(count)
    return lambda: CheckpointFolder(folder / "checkpoints").save(1, state, epoch=1)


def load_weights(folder: Path, count: int) -> Work:
    """Load the checkpoint that `save_weights` has saved, which is checked."""
    assert count
    return CheckpointFolder(folder / "checkpoints").load_latest


def run_ranks(folder: Path, count: int) -> Work:
    """Train 60 steps of 256 images on `count` ranks of one thread, which share the machine's cores."""
    words = ["data=synthetic", "data.num_train=5120", "data.num_test=64", "data.image_size=16", "model.width=8",
             "batch_size=256", "epochs=3", "precision=fp32", "device=cpu", f"run_dir={folder / 'run'}"]  # fmt: skip
    start = [sys.executable, "-m"]
    start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return lambda: subprocess.run([*start, "sam_runner", *words], check=True, capture_output=True, env=environment)


WEIGHTS = Quantity(
    "weights",
    (100_000, 1_000_000, 10_000_000, 100_000_000),
    (100_000, 1_000_000),
    {"five SAM steps": step_weights, "checkpoint saved": save_weights, "checkpoint loaded": load_weights},
)
TENSORS = Quantity("tensors of weights", (20, 200, 2000), (20, 200), {"five SAM steps": step_layers})
RANKS = Quantity("ranks", (1, 2, 4), (1, 2), {"run of 60 steps": run_ranks})
