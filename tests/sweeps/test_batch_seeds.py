"""`sweep.batch_seeds`: jobs that differ in the seed, trained at once, are runs as those trained one after the other."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from sam_runner.runs import start
from sam_runner.sweeps.jobs import group_seeds, plan_jobs
from sam_runner.training import loop
from sam_runner.utils.seeding import RngState
from tests.helpers import TINY, command, invoke, job_config, read_rows, write_image_folder

WORDS = [
    *TINY, "optimizer=sam", "precision=fp64", "noise=symmetric", "noise.rate=0.25", "ema_decay=0.9",
    "telemetry.every=2", "data.val_fraction=0.2",
]  # fmt: skip
pytestmark = pytest.mark.timeout(600)


def sweep_folders(tmp_path, name):
    """Run folders of a sweep by seed."""
    paths = (tmp_path / "outputs" / "sweeps" / name).glob("seed=*")
    return {int(path.name.partition(",")[0].removeprefix("seed=")): path for path in paths}


def read_state(folder):
    return torch.load(max((folder / "checkpoints").glob("*.pt")), weights_only=True)


def assert_equal_runs(folder, other):
    """The same files, settings, progress and random state; the numbers agree to rounding."""
    files = [
        {path.relative_to(run) for path in run.rglob("*") if "tfevents" not in path.name} for run in (folder, other)
    ]
    assert files[0] == files[1]
    assert [len(list(run.glob("*tfevents*"))) for run in (folder, other)] == [1, 1]
    results = [json.loads((run / "result.json").read_text()) for run in (folder, other)]
    assert all(results[0][key] == results[1][key] for key in ("status", "seed", "epoch", "step", "fingerprint"))
    states = [read_state(run) for run in (folder, other)]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(states[0]["optimizer"]["state"], states[1]["optimizer"]["state"], rtol=1e-10, atol=1e-10)
    rng = [RngState.from_state_dict(state["ranks"][0]["rng"]) for state in states]
    assert rng[0].equals(rng[1])
    rows = [read_rows(run) for run in (folder, other)]
    assert len(rows[0]) == len(rows[1])
    for one, two in zip(*rows, strict=True):
        assert one == pytest.approx(two, rel=1e-8, abs=1e-8)


@pytest.fixture
def alone(tmp_path, monkeypatch, capsys):
    """Folders of the runs of seeds 0, 1 and 2, trained one after the other."""
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *WORDS, "seed=0,1,2", "sweep_name=alone")
    assert done.returncode == 0, done.stderr
    return sweep_folders(tmp_path, "alone")


def test_jobs_are_grouped_by_what_they_share_but_the_seed(tmp_path):
    words = [f"optimizer=sam rho={rho} seed={seed}" for seed in range(3) for rho in (0.1, 0.2)]
    jobs, _ = plan_jobs(tmp_path, [(typed.split(), job_config(*typed.split())) for typed in words], write=False)
    numbers = [[job.number for job in group] for group in group_seeds(jobs, 2)]
    assert numbers == [[1, 3], [2, 4], [5], [6]]
    assert group_seeds(jobs, 1) == [(job,) for job in jobs]


def test_seeds_at_once_have_the_results_of_seeds_one_after_the_other(tmp_path, monkeypatch, capsys, alone):
    words = ["-m", *WORDS, "seed=0,1,2", "sweep_name=joint", "sweep.batch_seeds=3", "sweep.verbose=true"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    folders = sweep_folders(tmp_path, "joint")
    for seed, folder in folders.items():
        assert_equal_runs(folder, alone[seed])
        log = (folder / "run.log").read_text()
        assert log.count("epoch 2/2") == 1 and f"finished: {folder.relative_to(tmp_path)}" in log
        assert f"[{seed + 1}] epoch 2/2" in done.stdout
    first = (folders[0] / "metrics.jsonl").stat()
    again = invoke(monkeypatch, capsys, tmp_path, *words)
    assert again.returncode == 0 and again.stdout.count("already finished") == 3
    assert (folders[0] / "metrics.jsonl").stat() == first


def test_processes_share_the_groups(tmp_path, monkeypatch, capsys, alone):
    done = command(
        "-m", *WORDS, "seed=0,1,2", "sweep_name=joint", "sweep.batch_seeds=2", "sweep.jobs=2", cwd=tmp_path, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "2 groups of seeds at once (sweep.jobs)" in done.stdout
    folders = sweep_folders(tmp_path, "joint")
    processes = {seed: json.loads((path / "status.json").read_text())["pid"] for seed, path in folders.items()}
    assert processes[0] == processes[1] != processes[2]
    for seed, folder in folders.items():
        assert_equal_runs(folder, alone[seed])


def test_a_stopped_group_continues_together_or_one_by_one(tmp_path, monkeypatch, capsys, alone):
    train_step, count = loop._train_step, []

    def stop_in_the_second_epoch(*arguments):
        count.append(1)
        if len(count) == 3 * 5 + 2:  # the second run, in step 6 of 8
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # the main thread receives it
        return train_step(*arguments)

    words = ["-m", *WORDS, "seed=0,1,2", "sweep_name=joint", "sweep.batch_seeds=3"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", stop_in_the_second_epoch)
        assert invoke(patch, capsys, tmp_path, *words).returncode == 75
    folders = sweep_folders(tmp_path, "joint")
    assert [json.loads((path / "status.json").read_text())["status"] for path in folders.values()] == ["preempted"] * 3
    assert sorted(read_state(path)["step"] for path in folders.values()) == [5, 6, 6]  # the third had not begun step 6
    single = invoke(monkeypatch, capsys, tmp_path, f"resume={folders[1]}")
    assert single.returncode == 0, single.stderr
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 1 and done.stdout.count("continuing") == 2
    for seed, folder in folders.items():
        torch.testing.assert_close(
            read_state(folder)["model"], read_state(alone[seed])["model"], rtol=1e-10, atol=1e-10
        )
        assert [row["step"] for row in read_rows(folder)] == [row["step"] for row in read_rows(alone[seed])]


def test_a_seed_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys, alone):
    build = start.build_run

    def build_broken(config, *arguments, **options):
        run = build(config, *arguments, **options)
        if config.seed == 1:
            next(run.model.parameters()).data.fill_(float("nan"))
        return run

    monkeypatch.setattr(start, "build_run", build_broken)
    words = [*WORDS, "seed=0,1,2", "sweep_name=joint", "sweep.batch_seeds=4"]
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *words)
    assert done.returncode == 1 and "the loss at w is not finite at step 1" in done.stderr
    folders = sweep_folders(tmp_path, "joint")
    states = {seed: json.loads((path / "status.json").read_text())["status"] for seed, path in folders.items()}
    assert states == {0: "finished", 1: "failed", 2: "finished"}
    for seed in (0, 2):
        assert_equal_runs(folders[seed], alone[seed])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.dropout=0.5"], "does not work with SmallCNN: it draws random numbers in a pass (dropout"),
        (["compile=default"], "does not work with compile=default"),
        (["optimizer.second_order=true"], "does not work with optimizer.second_order=true"),
        (["hydra/launcher=submitit_local"], "has no effect: each job has its own processes"),
        (["hydra/sweeper=optuna"], "has no effect: a search chooses the jobs"),
        (["data.storage=disk", "data=image_folder", "data.root=images", "data.image_size=8"], "needs images in memory"),
        (["seed=3", "lr=0.1,0.2"], "has no effect: no two jobs differ only in the seed"),
        (["seed=3", "dry_run=true"], "has no effect: no two jobs differ only in the seed"),
        (["sweep.batch_seeds=0"], "sweep.batch_seeds=0 is out of range"),
        (["sweep.batch_seeds=1,2"], "sweep.batch_seeds=1,2 gives several values"),
    ],
)
def test_what_cannot_make_joint_passes_is_refused_before_any_work(tmp_path, monkeypatch, capsys, words, message):
    given = [] if any("batch_seeds" in word for word in words) else ["sweep.batch_seeds=2"]
    base = [word for word in WORDS if not (word.startswith("data") and "data=image_folder" in words)]
    write_image_folder(tmp_path / "images")
    seeds = [] if "seed=3" in words else ["seed=0,1"]
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *base, *seeds, "sweep_name=x", *given, *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not list(Path(tmp_path).glob("outputs/sweeps/x/*"))


def test_the_last_batch_of_a_sweep_may_be_one_seed(tmp_path, monkeypatch, capsys):
    words = ["seed=0,1,2", "hydra.sweeper.max_batch_size=2", "sweep_name=x", "sweep.batch_seeds=2"]
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, *words, "epochs=1")
    assert done.returncode == 0, done.stderr
    assert len(sweep_folders(tmp_path, "x")) == 3


def test_a_single_run_refuses_it(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *WORDS, "sweep.batch_seeds=2")
    assert done.returncode == 2 and "sweep.batch_seeds has no effect without -m" in done.stderr
