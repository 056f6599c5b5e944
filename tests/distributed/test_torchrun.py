"""Runs under torchrun: one run folder, the results of one process, resuming, and ranks that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers import TINY, command, environment_of_a_call, read_rows
from tests.training.test_early_stopping import HARD, find_end

pytestmark = [pytest.mark.dist, pytest.mark.timeout(240)]
SAM = (*TINY, "optimizer=sam", "rho=0.1", "precision=fp64")


def start(count, *arguments, cwd, options=()):
    """Start `torchrun -m sam_runner ...` with its output in output.txt."""
    with (cwd / "output.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone", *options,
             "-m", "sam_runner", *map(str, arguments)],
            cwd=cwd, stdout=output, stderr=subprocess.STDOUT, env=environment_of_a_call(),
        )  # fmt: skip


def run_torchrun(count, *arguments, cwd):
    """Run `torchrun -m sam_runner ...`; return its exit code and output."""
    process = start(count, *arguments, cwd=cwd)
    return process.wait(180), (cwd / "output.txt").read_text()


def find_worker(process, rank):
    """Return the process id of a rank."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"rank {rank} has no process")


def wait_for_checkpoint(folder, process):
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        if any(path.stat().st_size for path in folder.glob("checkpoints/*.json")):
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint was written")


def load_weights(folder):
    path = sorted(folder.glob("checkpoints/step-*.json"))[-1].with_suffix(".pt")
    return torch.load(path, weights_only=True)["model"]


def read_last_row(folder):
    return read_rows(folder)[-1]


def read_status(folder):
    return json.loads((folder / "status.json").read_text())


def assert_same_weights(folder, expected_folder, atol=1e-10):
    weights, expected = load_weights(folder), load_weights(expected_folder)
    assert weights.keys() == expected.keys()
    for name in weights:
        assert torch.allclose(weights[name], expected[name], rtol=0, atol=atol), name


def test_two_ranks_equal_one_process_with_groups_of_half_the_batch(tmp_path):
    """With batch norm: the statistics are averaged over ranks as they are over groups."""
    arguments = (*SAM, "ema_decay=0.9", "noise=symmetric", "noise.rate=0.3", "augment=basic", "augment.pad=2")
    code, output = run_torchrun(2, *arguments, cwd=tmp_path)
    assert code == 0, output
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert output.count("finished:") == 1
    assert len(list(folder.glob("events*"))) == 1
    assert command(*arguments, "optimizer.m=8", "run_dir=one", cwd=tmp_path).returncode == 0
    assert_same_weights(folder, tmp_path / "one")
    row, expected = read_last_row(folder), read_last_row(tmp_path / "one")
    assert row == pytest.approx(expected, rel=1e-9)
    assert command(*arguments, "run_dir=whole", cwd=tmp_path).returncode == 0
    whole = read_last_row(tmp_path / "whole")
    assert whole["train/loss_gap"] != pytest.approx(row["train/loss_gap"], rel=1e-3)  # the two cases differ


def test_three_uneven_ranks_with_a_common_perturbation_equal_one_process(tmp_path):
    """Ranks get 6, 5 and 5 images of 16, and 2, 1 and 1 of the last 4; there are fewer test batches than ranks."""
    arguments = (
        *SAM, "data.num_train=100", "data.drop_last=false", "data.num_test=600", "model.batch_norm=false",
        "accumulate=2",
    )  # fmt: skip
    code, output = run_torchrun(3, *arguments, "optimizer.sync_perturbation=true", "run_dir=three", cwd=tmp_path)
    assert code == 0, output
    assert command(*arguments, "run_dir=one", cwd=tmp_path).returncode == 0
    assert_same_weights(tmp_path / "three", tmp_path / "one")
    assert read_last_row(tmp_path / "three") == pytest.approx(read_last_row(tmp_path / "one"), rel=1e-9)


def test_shards_equal_one_process_and_go_on_to_the_bit(tmp_path):
    """FSDP2: norms are computed over all shards, checkpoints hold full weights."""
    arguments = (
        *SAM, "model.batch_norm=false", "grad_clip=0.5", "accumulate=2", "epochs=30", "checkpoint.every_steps=5",
    )  # fmt: skip
    sharded = (*arguments, "parallel=fsdp", "optimizer.sync_perturbation=true", "run_dir=cut")
    process = start(2, *sharded, cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "cut", process)
    os.kill(find_worker(process, 0), signal.SIGKILL)
    assert process.wait(60) == 1
    code, output = run_torchrun(2, *sharded, cwd=tmp_path)
    assert code == 0, output
    assert "continuing cut after step" in output
    assert command(*arguments, "run_dir=one", cwd=tmp_path).returncode == 0
    assert_same_weights(tmp_path / "cut", tmp_path / "one")
    assert read_last_row(tmp_path / "cut") == pytest.approx(read_last_row(tmp_path / "one"), rel=1e-9)


def test_two_ranks_stop_early_at_the_same_epoch(tmp_path):
    arguments = (*TINY, *HARD, "early_stopping.patience=3", "run_dir=run")
    code, output = run_torchrun(2, *arguments, cwd=tmp_path)
    assert code == 0, output
    rows = read_rows(tmp_path / "run")
    accuracies = [row["validation/accuracy"] for row in rows if "validation/accuracy" in row]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["epoch"], result["best_epoch"]) == find_end(accuracies, 3)
    assert result["stopped_early"]
    assert result["epoch"] == len(accuracies) < 30


def test_second_order_and_clipping_on_two_ranks_equal_one_process(tmp_path):
    arguments = (*SAM, "optimizer.second_order=true", "grad_clip=0.1", "max_steps=5")
    code, output = run_torchrun(2, *arguments, "run_dir=two", cwd=tmp_path)
    assert code == 0, output
    assert command(*arguments, "optimizer.m=8", "run_dir=one", cwd=tmp_path).returncode == 0
    assert_same_weights(tmp_path / "two", tmp_path / "one")


OWN_NETWORK = """
import random
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, by_images=False):
        super().__init__()
        self.by_images = by_images
        self.stem, self.head = nn.Linear(64, 8), nn.Linear(8, num_classes)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.unused, self.extra = nn.Parameter(torch.ones(3)), nn.Linear(8, 2)

    def forward(self, images):
        x = self.stem(images.flatten(1))
        for number, block in enumerate(self.blocks):
            is_used = images[number % len(images), 0, 0, 0] > 0 if self.by_images else random.random() < 0.5
            if is_used and self.training:
                x = x + block(x).tanh()
        return {"logits": self.head(x), "extra": self.extra(x)}
"""


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """Arguments for a network that skips blocks at random, or by the images of a process."""
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    (tmp_path / "own" / "model" / "net.yaml").write_text("_target_: own_network.Net\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "own_network")
    tiny = [word for word in SAM if not word.startswith("model.")]
    return ("--config-dir", "own", *tiny, "model=net", "log_every=1")


@pytest.mark.parametrize("options", [[], ["optimizer.second_order=true"]])
def test_processes_may_skip_different_blocks(tmp_path, own_network, options):
    arguments = (*own_network, *options, "+model.by_images=true")
    code, output = run_torchrun(2, *arguments, "run_dir=two", cwd=tmp_path)
    assert code == 0, output
    assert command(*arguments, "optimizer.m=8", "run_dir=one", cwd=tmp_path).returncode == 0
    assert_same_weights(tmp_path / "two", tmp_path / "one")


def test_processes_with_shards_skip_the_same_blocks(tmp_path, own_network):
    arguments = (*own_network, "optimizer.sync_perturbation=true", "epochs=4")
    code, output = run_torchrun(2, *arguments, "parallel=fsdp", "run_dir=two", cwd=tmp_path)
    assert code == 0, output
    alone = [word for word in arguments if "sync_perturbation" not in word]
    assert command(*alone, "run_dir=one", cwd=tmp_path).returncode == 0
    assert_same_weights(tmp_path / "two", tmp_path / "one")


def test_numbers_of_passes_that_differ_are_refused_for_shards(tmp_path):
    arguments = (*SAM, "parallel=fsdp", "optimizer.sync_perturbation=true", "model.batch_norm=false")
    uneven = ("accumulate=3", "batch_size=14", "data.num_train=56")  # 5, 5 and 4 images in parts of 2
    code, output = run_torchrun(3, *arguments, *uneven, cwd=tmp_path)
    assert code == 1
    assert output.count("processes would make 3 and 2 passes for a batch of 14 images") == 1
    assert not (tmp_path / "outputs").exists()
    code, output = run_torchrun(3, *arguments, *uneven, "batch_size=12", "run_dir=run", cwd=tmp_path)
    assert code == 0, output


def test_a_stopped_run_goes_on_to_the_bit_and_only_with_as_many_ranks(tmp_path):
    """Each rank has its own dropout masks, batch-norm statistics and sums of metrics, and 8 or 7 images of a batch."""
    arguments = (
        *TINY, "optimizer=sam", "model.dropout=0.3", "epochs=60", "checkpoint.every_steps=5", "batch_size=15",
        "log_every=6", "precision=fp64",
    )  # fmt: skip
    process = start(2, *arguments, "run_dir=cut", cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "cut", process)
    os.kill(find_worker(process, 1), signal.SIGTERM)  # a signal to one rank stops all
    assert process.wait(60) == 1  # torchrun turns every exit code into 1
    stopped = read_status(tmp_path / "cut")
    assert (stopped["status"], stopped["exit_code"], stopped["signal"]) == ("preempted", 75, "SIGTERM")
    refused = command(*arguments, "run_dir=cut", cwd=tmp_path)
    assert refused.returncode == 2
    assert "world_size: 2 -> 1" in refused.stderr
    for folder in ("cut", "whole"):
        code, output = run_torchrun(2, *arguments, f"run_dir={folder}", cwd=tmp_path)
        assert code == 0, output
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert_same_weights(tmp_path / "cut", tmp_path / "whole", atol=0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_rank_that_does_not_respond_is_named(tmp_path, number):
    process = start(2, *TINY, "epochs=4000", "run_dir=run", "rank_timeout=6", cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "run", process)
    pid, start_time = find_worker(process, 1), time.monotonic()
    os.kill(pid, number)
    try:
        assert process.wait(60) == 1
    finally:
        if number == signal.SIGSTOP and Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    assert time.monotonic() - start_time < 50
    output = (tmp_path / "output.txt").read_text()
    assert "error: rank 1 does not respond" in output
    final = read_status(tmp_path / "run")
    assert final["status"] == "failed"
    assert "rank 1 does not respond" in final["error"]


def test_a_restart_by_torchrun_continues_the_run(tmp_path):
    arguments = (*TINY, "epochs=60", "checkpoint.every_steps=5", "run_dir=run")
    process = start(2, *arguments, cwd=tmp_path, options=("--max-restarts", "1"))
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(find_worker(process, 1), signal.SIGKILL)
    assert process.wait(120) == 0
    output = (tmp_path / "output.txt").read_text()
    assert "rank 1 does not respond" in output
    assert "continuing run after step" in output
    assert read_status(tmp_path / "run")["status"] == "finished"


def test_an_error_on_one_rank_ends_all_ranks(tmp_path):
    """An image that cannot be decoded raises on the rank whose part of the batch has it."""
    for part, number in (("train", 32), ("test", 8)):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(number // 2):
                path = tmp_path / "images" / part / name / f"{index:02}.png"
                Image.new("RGB", (16, 16), (index, 0, 0)).save(path)
    damaged = tmp_path / "images" / "train" / "b" / "11.png"
    content = damaged.read_bytes()
    middle = content.index(b"IDAT") + 4  # head and end are intact, so the check before training accepts the file
    damaged.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])
    code, output = run_torchrun(
        2, "data=image_folder", f"data.root={tmp_path}/images", "data.storage=disk", "data.image_size=16",
        "data.normalisation=imagenet", "batch_size=32", "epochs=50", "device=cpu", "run_dir=run", "model.width=4",
        "data.num_workers=0", cwd=tmp_path,
    )  # fmt: skip
    assert code == 1
    assert "11.png" in read_status(tmp_path / "run")["error"]
    assert "error: rank 1: " in output or "error: rank 0: " in output
    assert "Traceback" not in output.split("torch/distributed")[0]
    assert read_status(tmp_path / "run")["status"] == "failed"


def test_a_sweep_runs_every_job_once_and_none_when_repeated(tmp_path):
    arguments = ("-m", *TINY, "epochs=1", "optimizer=sgd,sam", "rho=0.05,-1", "sweep_name=s")
    code, output = run_torchrun(2, *arguments, cwd=tmp_path)
    assert code == 1  # rho=-1
    assert output.count("finished: ") == 2
    assert output.count("error: rho=-1.0 is out of range") == 2  # once a job: sgd has the key too
    assert output.count("report: ") == 1
    finished = list((tmp_path / "outputs" / "sweeps" / "s").glob("*/result.json"))
    assert len(finished) == 2
    code, output = run_torchrun(2, *(word for word in arguments if "rho" not in word), "rho=0.05", cwd=tmp_path)
    assert code == 0, output
    assert output.count("already finished: ") == 2


def test_bad_input_is_reported_once(tmp_path):
    code, output = run_torchrun(2, *TINY, "batch_size=1", cwd=tmp_path)
    assert code == 1
    assert output.count("batch_size=1 is smaller than the number of processes, 2") == 1
    assert not (tmp_path / "outputs").exists()
