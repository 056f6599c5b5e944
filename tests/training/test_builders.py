"""Decisions of sam_runner/training/builders/run.py that need no run."""

import dataclasses

import pytest
import torch
from torch import nn

from sam_runner.config.experiment import ExperimentConfig
from sam_runner.distributed.context import DistributedContext
from sam_runner.training.builders import run
from sam_runner.utils.errors import InputError

TWO = DistributedContext(rank=1, world_size=2, local_rank=1, local_world_size=2)


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_each_process_has_the_gpu_of_its_number(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("SAM_RUNNER_JOB", raising=False)
    assert run.resolve_device(name, TWO) == torch.device("cuda", 1)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes on a machine with 1 CUDA devices"):
        run.resolve_device("cuda", TWO)


@pytest.mark.parametrize(("mode", "is_compiled"), [("off", False), ("graph", False), ("default", True)])
def test_without_cuda_only_the_graph_does_without_the_compiler(mode, is_compiled, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    config = dataclasses.replace(ExperimentConfig(), compile=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.build_step(config, model, optimizer, None, torch.device("cpu"), 10)
    assert compiled == ([model] if is_compiled else [])
