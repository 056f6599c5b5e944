"""The cost that result.json carries: gradients, images, seconds and memory."""

import json

import pytest
import torch

from sam_runner.utils.memory import measure_peak_memory, reset_peak_memory
from tests.helpers import train_tiny

STEPS, BATCH = 12, 16  # of the tiny problem: 96 images, 2 epochs


@pytest.mark.parametrize(
    ("options", "gradients", "forward", "backward"),
    [
        ([], 1, 1, 1),
        (["optimizer=sam"], 2, 2, 2),
        (["optimizer=sam", "optimizer.m=8", "accumulate=4"], 2, 2, 2),
        (["optimizer=sam", "rho=0"], 1, 1, 1),
        (["optimizer=sam", "optimizer.ascent_steps=3"], 4, 4, 4),
        (["optimizer=sam", "optimizer.second_order=true"], 2, 2, 5),
    ],
)
def test_a_run_counts_its_passes(tmp_path, options, gradients, forward, backward):
    folder = train_tiny(tmp_path / "run", *options)
    result = json.loads((folder / "result.json").read_text())
    assert result["gradient_evaluations"] == gradients * STEPS
    assert result["images_forward"] == forward * STEPS * BATCH
    assert result["images_backward"] == backward * STEPS * BATCH
    assert result["images_per_second"] == pytest.approx(STEPS * BATCH / result["training_seconds"])
    assert result["peak_memory_of"] == "process"


def test_the_peak_of_a_process_is_that_since_the_reset():
    device = torch.device("cpu")
    size = 256 << 20
    before = measure_peak_memory(device)[0]
    block = torch.ones(size, dtype=torch.uint8)
    assert measure_peak_memory(device)[0] >= before
    with_block = measure_peak_memory(device)[0]
    assert with_block > size
    del block
    reset_peak_memory(device)
    assert measure_peak_memory(device)[0] <= with_block
