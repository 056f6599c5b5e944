"""How far a sweep is: the line that it shows, sam-status, and the estimate of the remaining time."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import pytest

from sam_runner.commands import status as status_command
from sam_runner.runs.plan import PlanEntry, extend_plan
from sam_runner.runs.status import write_status
from sam_runner.sweeps import progress as progress_module
from sam_runner.sweeps.claims import hold_call
from sam_runner.sweeps.progress import JobState, SweepProgress, read_state, show_progress
from tests.helpers import invoke, wait_for
from tests.run_folders import lay


def lay_job(sweep, name, status="", epoch=0, settings=(), cost=8, **details):
    """Plan a job of 4 epochs, by default with SAM, and write its status and the last row of its metrics."""
    extend_plan(sweep, lambda _: [PlanEntry(name, name, settings, 4, cost)])
    if status:
        lay_status(sweep, name, status, epoch, **details)


def lay_status(sweep, name, status, epoch, **details):
    (sweep / name).mkdir(exist_ok=True)
    write_status(sweep / name, status, **details)
    row = {"step": 1, "epoch": epoch, "test/nll": 0.0}
    (sweep / name / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n" + json.dumps(row) + "\n")
    if status == "finished":
        (sweep / name / "result.json").write_text(json.dumps({"status": "finished"}))


def began(seconds):
    """The time of a status that was written some seconds ago."""
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat()


def progress_of(sweep):
    progress = SweepProgress(sweep)
    progress.update()
    return progress


def test_the_line_counts_the_jobs_and_estimates_the_time(tmp_path):
    lay_job(tmp_path, "a", "finished", 4, seconds=120.0)
    lay_job(tmp_path, "b", "running", 2, time=began(100))  # slower until now, it has half of its work left
    lay_job(tmp_path, "c", "failed", 1, error="no")
    lay_job(tmp_path, "d")
    progress = progress_of(tmp_path)
    assert progress.seconds_left == pytest.approx(60 + 120, rel=0.02)  # as long as the job that has finished
    assert progress.line() == "job 3 of 4, 1 finished, 1 failed, about 3 min left"


def test_jobs_that_run_at_once_share_the_remaining_work(tmp_path):
    for name in ("a", "b"):
        lay_job(tmp_path, name, "running", 2, time=began(100), call="other")  # half of the work in 100 s each
    assert progress_of(tmp_path).seconds_left == pytest.approx(100, rel=0.02)


def test_jobs_take_as_long_as_finished_ones_that_differ_in_the_seed_only(tmp_path):
    sgd, sam, new = ("optimizer=sgd",), ("optimizer=sam",), ("optimizer=asam",)
    lay_job(tmp_path, "sgd0", "finished", 4, ("seed=0", *sgd), 4, seconds=100.0)
    lay_job(tmp_path, "sam0", "finished", 4, ("seed=0", *sam), 8, seconds=300.0)  # not 200 s, as its cost says
    lay_job(tmp_path, "sgd1", "running", 2, ("seed=1", *sgd), 4, time=began(50))
    lay_job(tmp_path, "sam1", "running", 2, ("seed=1", *sam), 8, time=began(150))
    assert progress_of(tmp_path).seconds_left == pytest.approx(150, rel=0.02)  # the longer one
    lay_job(tmp_path, "sgd2", settings=("seed=2", *sgd), cost=4)
    lay_job(tmp_path, "sam2", settings=("seed=2", *sam), cost=8)
    assert progress_of(tmp_path).seconds_left == pytest.approx(50 + 100 + 300, rel=0.02)
    lay_job(tmp_path, "asam0", settings=("seed=0", *new), cost=6)  # 400 s for a cost of 12: 200 s, after 150 s
    assert progress_of(tmp_path).seconds_left == pytest.approx(50 + 100 + 300, rel=0.02)
    lay_job(tmp_path, "asam1", settings=("seed=1", *new), cost=6)
    assert progress_of(tmp_path).seconds_left == pytest.approx(150 + 200 + 200, rel=0.02)


def test_the_estimate_does_not_jump_within_an_epoch_or_between_two_jobs(tmp_path):
    lay_job(tmp_path, "a", "finished", 4, seconds=100.0)
    lay_job(tmp_path, "b", "running", 2, time=began(200))
    for age, left in ((0, 50), (10, 40), (24, 26), (300, 25)):  # at most until the end of the epoch
        now = time.time()
        os.utime(tmp_path / "b" / "metrics.jsonl", (now - age, now - age))
        assert progress_of(tmp_path).seconds_left == pytest.approx(left, abs=0.5)
    os.utime(tmp_path / "b" / "metrics.jsonl")
    lay_job(tmp_path, "c", "running", 3, time=began(75))
    lay_job(tmp_path, "d")
    progress = progress_of(tmp_path)
    assert progress.seconds_left == pytest.approx(25 + 100, abs=0.5)
    lay_status(tmp_path, "c", "finished", 4, seconds=100.0)  # its process has not yet begun the next job
    progress.update()
    assert progress.seconds_left == pytest.approx(100, abs=0.5)


def test_without_a_terminal_a_line_is_printed_for_each_change_and_from_time_to_time(tmp_path, monkeypatch):
    lay_job(tmp_path, "a", "running", 2, time=began(100), call="this")
    monkeypatch.setenv("SAM_RUNNER_STARTED", "this")
    monkeypatch.setattr(progress_module, "INTERVAL", 0.01)
    for repeat, is_repeated in ((1000.0, False), (0.02, True)):
        monkeypatch.setattr(progress_module, "REPEAT", repeat)
        lines = []
        with show_progress(SweepProgress(tmp_path), lines.append):
            wait_for(lambda lines=lines: lines)
            time.sleep(0.2)
        assert (len(lines) > 1) == is_repeated
        assert lines[0] == "job 1 of 1, 0 finished, about 2 min left"


def test_only_the_epochs_of_this_call_count_for_the_speed():
    began = JobState("x", "running", 10, done=6, cost=10.0, seconds=20.0, from_epoch=5)
    assert (began.paid_cost, began.remaining_cost) == (1.0, 4.0)


def test_the_line_at_the_start_and_at_the_end(tmp_path):
    lay_job(tmp_path, "a")
    assert progress_of(tmp_path).line() == "1 job, 0 finished"
    assert progress_of(tmp_path).seconds_left is None
    lay_job(tmp_path, "b", "finished", 4)
    assert progress_of(tmp_path).line() == "job 1 of 2, 1 finished"


def test_an_epoch_counts_when_it_has_been_evaluated(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 3, "train/loss": 1.0}\n')
    write_status(tmp_path, "preempted")
    assert read_state(tmp_path, 4).done == 2
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 3, "step": 30, "test/nll": 1.0}\n')
    assert read_state(tmp_path, 4).done == 3
    rows = '{"epoch": 2, "step": 20, "test/nll": 1.0}\n{"epoch": 3, "step": 25}\n'
    for torn in ("", '{"epoch": 3, "st'):
        (tmp_path / "metrics.jsonl").write_text(rows + torn)
        assert read_state(tmp_path, 4).done == 2.5  # 10 steps an epoch
    long = json.dumps({"epoch": 1, "step": 1, "padding": "x" * 20_000})
    (tmp_path / "metrics.jsonl").write_text(long + "\n" + rows)
    assert read_state(tmp_path, 4).done == 2.5
    (tmp_path / "metrics.jsonl").write_text('{"epo')
    assert read_state(tmp_path, 4).done == 0


def test_sam_status_tells_of_a_sweep_what_runs_and_what_failed(tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "first"
    lay_job(sweep, "a", "finished", 4)
    lay_job(sweep, "b", "failed", 1, error="boom\nmore")
    lay_job(sweep, "c", "running", 2, host="elsewhere", pid=7)
    lay_job(sweep, "d")
    done = invoke(monkeypatch, capsys, tmp_path, "first", entry=status_command.main)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        r"first: job 3 of 4, 1 finished, 1 failed, 1 running in another call, about \d+ s left", lines[0]
    )
    assert lines[1] == "  failed      b, boom"
    assert re.fullmatch(r"  running     c, epoch 2 of 4, about \d+ s left, process 7 on elsewhere", lines[2])
    assert len(lines) == 3


def test_sam_status_tells_of_jobs_that_were_refused(tmp_path, monkeypatch, capsys):
    for value in ("-1", "-2"):
        folder = tmp_path / "first" / "not_started" / f"rho={value}-{value[1] * 12}"
        folder.mkdir(parents=True)
        write_status(folder, "refused", error=f"rho={value} is out of range\n  accepted: [0, inf)")
    done = invoke(monkeypatch, capsys, tmp_path, "first", entry=status_command.main)
    lines = [
        "first: job 2 of 2, 0 finished, 2 refused",
        "  refused     rho=-1-111111111111, rho=-1 is out of range",
        "  refused     rho=-2-222222222222, rho=-2 is out of range",
    ]
    assert done.stdout.splitlines() == [*lines, "  nothing is running; refused jobs need other settings"]
    lay_job(tmp_path / "first", "a", "finished", 4)
    lay_job(tmp_path / "first", "b")
    done = invoke(monkeypatch, capsys, tmp_path, "first", entry=status_command.main)
    assert done.stdout.splitlines()[0] == "first: job 3 of 4, 1 finished, 2 refused"
    assert done.stdout.splitlines()[-1].endswith("the same command with sweep_name=first continues the sweep")


def test_jobs_that_were_not_run_are_told_apart_from_those_that_failed_or_died(tmp_path):
    lay_job(tmp_path, "a", "failed", 1)
    lay_job(tmp_path, "b", "running", 1)
    (tmp_path / "b" / ".lock").write_text("")
    lay_job(tmp_path, "c")
    (tmp_path / "not_started" / "c-c").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    write_status(tmp_path / "c", "not run")
    assert progress_of(tmp_path).line() == "job 2 of 3, 0 finished, 1 failed, 1 died, 1 not run"


def test_sam_status_says_how_to_continue_what_nothing_runs(tmp_path, monkeypatch, capsys):
    lay_job(tmp_path / "first", "a", "preempted", 2)
    done = invoke(monkeypatch, capsys, tmp_path, "first", entry=status_command.main)
    assert done.stdout.splitlines()[1:] == [
        "  preempted   a, epoch 2 of 4",
        "  nothing is running; the same command with sweep_name=first continues the sweep",
    ]


def test_sam_status_tells_that_a_sweep_is_starting(tmp_path):
    lay_job(tmp_path / "first", "a")

    def tell():
        code = "from sam_runner.commands.status import main; main()"
        words = [sys.executable, "-c", code, "first"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()[1:]

    with hold_call(tmp_path / "first"):
        assert tell() == ["  starting: the command of the sweep is running, and no job yet"]
    assert tell() == ["  nothing is running; the same command with sweep_name=first continues the sweep"]


def test_sam_status_of_a_run_and_of_another_folder(tmp_path, monkeypatch, capsys):
    lay(tmp_path / "run", accuracy=0.75)
    done = invoke(monkeypatch, capsys, tmp_path, "run", entry=status_command.main)
    assert done.stdout == "finished    run: test/accuracy 0.7500, test/nll 0.2500, 0 images/s\n"
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "config.yaml").write_text("epochs: 4\n")
    write_status(tmp_path / "dead", "preempted", exit_code=75)
    died = invoke(monkeypatch, capsys, tmp_path, "dead", entry=status_command.main)
    assert died.stdout.splitlines()[1:] == ["  to continue it: sam-train resume=dead"]
    (tmp_path / "dead" / "config.yaml").write_text("epochs: 4\nworld_size: 2\n")
    died = invoke(monkeypatch, capsys, tmp_path, "dead", entry=status_command.main)
    assert died.stdout.splitlines()[1:] == ["  to continue it: torchrun --nproc-per-node 2 -m sam_runner resume=dead"]
    (tmp_path / "dead" / "config.yaml").write_text("epochs: 4\nmodel:\n  _target_: mine.Net\n")
    died = invoke(monkeypatch, capsys, tmp_path, "dead", entry=status_command.main)
    assert died.stdout.splitlines()[1:] == ["  to continue it: SAM_RUNNER_TRUSTED=mine sam-train resume=dead"]
    (tmp_path / "empty").mkdir()
    all_runs = invoke(monkeypatch, capsys, tmp_path, ".", entry=status_command.main)
    assert all_runs.stdout == died.stdout + done.stdout
    refused = invoke(monkeypatch, capsys, tmp_path, "empty", entry=status_command.main)
    assert refused.returncode == 2
    assert "holds neither a sweep nor a run" in refused.stderr


def test_sam_status_finds_runs_and_sweeps_in_outputs(tmp_path, monkeypatch, capsys):
    lay(tmp_path / "outputs/runs/a", accuracy=0.75)
    lay(tmp_path / "outputs/mine", accuracy=0.5)
    lay(tmp_path / "outputs/very/very/deep/b", accuracy=0.5)
    (tmp_path / "outputs/very/back").symlink_to("..")
    (tmp_path / "outputs/latest").symlink_to("runs/a")
    for one, other in itertools.permutations(range(7), 2):  # 13,700 paths without a link twice
        (tmp_path / f"outputs/linked/{one}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"outputs/linked/{one}/{other}").symlink_to(f"../{other}")
    lay_job(tmp_path / "outputs/sweeps/first", "a")
    for words in ((), ("outputs",)):
        done = invoke(monkeypatch, capsys, tmp_path, *words, entry=status_command.main)
        assert done.returncode == 0, done.stderr
        starts = [line.partition(":")[0].split()[-1] for line in done.stdout.splitlines() if line[0] != " "]
        assert starts == ["outputs/mine", "outputs/runs/a", "outputs/sweeps/first", "outputs/very/very/deep/b"]


def test_sam_status_answers_without_torch(tmp_path):
    lay_job(tmp_path / "first", "a")
    code = (
        "import sys; from sam_runner.commands.status import main; main()\n"
        "heavy = {'torch', 'numpy', 'hydra', 'pandas'} & {*sys.modules}; sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, "first"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
