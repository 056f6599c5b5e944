"""Whole sweeps: jobs that fail or are refused, signals, kills, launchers and searches."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import TINY, command, environment_of_a_call, invoke, wait_for

# Ray is too large for the extra `dev`, so CI does not run what needs it.
PLUGINS = {"submitit_local": "submitit", "ray": "ray", "optuna": "optuna"}
pytestmark = pytest.mark.timeout(600)
LONG = (*TINY, "epochs=100000", "log_every=1000")


def skip_without(option):
    extra = PLUGINS[option]
    present = importlib.util.find_spec(f"hydra_plugins.hydra_{option.removesuffix('_local')}_launcher") or (
        option == "optuna" and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper")
    )
    return pytest.mark.skipif(not present, reason=f"needs the extra: pip install 'sam-runner[{extra}]'")


LAUNCHERS = [pytest.param(option, marks=skip_without(option)) for option in ("submitit_local", "ray")]


def sweep_folder(tmp_path, name="x"):
    return tmp_path / "outputs" / "sweeps" / name


def read_states(folder):
    paths = [*folder.glob("*/status.json"), *folder.glob("not_started/*/status.json")]
    return sorted(json.loads(path.read_text())["status"] for path in paths)


def start_sweep(folder, *arguments):
    """Start a sweep in a new session and return its process."""
    return subprocess.Popen(
        [sys.executable, "-m", "sam_runner", "-m", *arguments, "sweep_name=x"], cwd=folder, start_new_session=True,
        env=environment_of_a_call(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_on_error_stop_starts_no_further_job_after_a_failure(tmp_path, monkeypatch, capsys):
    words = ["-m", *TINY, "epochs=1", "optimizer=sam", "rho=0.05,-1,0.1", "sweep_name=x"]
    done = invoke(monkeypatch, capsys, tmp_path, *words, "sweep.on_error=stop")
    assert done.returncode == 1
    assert read_states(sweep_folder(tmp_path)) == ["not run", "not run", "refused"]  # refused before a job started
    assert done.stderr.count("error: not run: ") == 2
    assert len([line for line in done.stdout.splitlines() if line.startswith(("not run: ", "refused: "))]) == 3
    again = invoke(monkeypatch, capsys, tmp_path, *words)
    assert again.returncode == 1
    assert read_states(sweep_folder(tmp_path)) == ["finished", "finished", "refused"]


def test_no_further_job_starts_after_one_has_failed(tmp_path, monkeypatch, capsys):
    words = ["-m", *TINY, "epochs=1", "lr=0.05,1e30,0.1", "sweep_name=x", "sweep.on_error=stop"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 1
    assert read_states(sweep_folder(tmp_path)) == ["failed", "finished", "not run"]


def test_a_refused_job_runs_once_its_reason_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef flat(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "flat.yaml").write_text("_target_: mine.flat\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    small = [word for word in TINY if not word.startswith("model")]
    words = ["-m", "--config-dir", "conf", *small, "epochs=1", "model=small_cnn,flat", "sweep_name=x"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 1
    assert read_states(sweep_folder(tmp_path)) == ["finished", "refused"]
    log = next(sweep_folder(tmp_path).glob("not_started/*/run.log")).read_text()
    assert "SAM_RUNNER_TRUSTED" in log
    assert (sweep_folder(tmp_path) / "report.html").read_text().count("<li>refused: ") == 1
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "mine")
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert read_states(sweep_folder(tmp_path)) == ["finished", "finished"]
    assert not (sweep_folder(tmp_path) / "not_started").exists()


def test_an_unexpected_error_is_in_the_log_of_its_job(tmp_path, monkeypatch, capsys):
    from sam_runner.runs import start

    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(start, "build_run", broken)
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "sweep_name=x")
    assert done.returncode == 1
    assert read_states(sweep_folder(tmp_path)) == ["failed"]
    log = next(sweep_folder(tmp_path).glob("not_started/*/run.log")).read_text()
    assert "Traceback" in log
    assert "no such kernel" in log


def read_table(folder):
    """Sorted rows of report.csv, without the columns of folders and times."""
    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    measured = {"folder", "training_seconds"}
    return sorted([value for name, value in row.items() if name not in measured] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("option", LAUNCHERS)
def test_every_launcher_gives_the_same_report_and_the_same_exit_code(option, tmp_path, monkeypatch, capsys):
    words = [*TINY, "optimizer=sam", "rho=0.05,-1,0.1", "seed=0,1"]
    plain = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "sweep_name=plain")
    done = command("-m", f"hydra/launcher={option}", *words, "sweep_name=x", cwd=tmp_path, timeout=200)
    assert plain.returncode == done.returncode == 1
    assert read_table(sweep_folder(tmp_path)) == read_table(sweep_folder(tmp_path, "plain"))
    assert done.stderr.count("error: refused: ") == plain.stderr.count("error: refused: ") == 2
    assert "\nrho " in plain.stdout and "\nrho " in done.stdout  # the printed table
    again = command("-m", f"hydra/launcher={option}", *words, "rho=0.05,0.1", "sweep_name=x", cwd=tmp_path, timeout=200)
    assert again.returncode == 0, again.stderr
    assert read_table(sweep_folder(tmp_path)) == read_table(sweep_folder(tmp_path, "plain"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [pytest.param(option, marks=skip_without(option)) for option in PLUGINS if option != "optuna"]
)
def test_a_signal_reaches_jobs_in_other_processes(option, tmp_path):
    process = start_sweep(tmp_path, f"hydra/launcher={option}", *LONG, "seed=0,1")
    wait_for(lambda: len(list(sweep_folder(tmp_path).glob("*/metrics.jsonl"))) == 2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert read_states(sweep_folder(tmp_path)) == ["preempted", "preempted"]
    assert len(list(sweep_folder(tmp_path).glob("*/checkpoints/step-*.pt"))) >= 2
    assert not list(sweep_folder(tmp_path).glob(".stop*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=submitit_local", "sweep.jobs=2"], "sweep.jobs=2 has no effect: a launcher decides"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib is not used: jobs run at once without it"),
    ],
)
def test_jobs_at_once_are_set_in_one_way(words, message, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "seed=0,1", "sweep_name=x", *words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@skip_without("ray")
def test_ray_starts_a_killed_job_again(tmp_path):
    process = start_sweep(tmp_path, "hydra/launcher=ray", *TINY, "epochs=300", "log_every=1000", "seed=0,1")
    wait_for(lambda: len(list(sweep_folder(tmp_path).glob("*/checkpoints/step-*.json"))) >= 2)
    first = next(sweep_folder(tmp_path).glob("*/status.json"))
    os.kill(json.loads(first.read_text())["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert read_states(sweep_folder(tmp_path)) == ["finished", "finished"]
    assert "continuing " in (first.parent / "run.log").read_text()


@pytest.mark.slow
@skip_without("submitit_local")
def test_a_requeued_job_saves_first_and_continues(tmp_path):
    """SIGUSR2 is what Slurm sends before the time limit: submitit queues the job again."""
    process = start_sweep(tmp_path, "hydra/launcher=submitit_local", *TINY, "epochs=150", "log_every=1000", "seed=0,1")
    wait_for(lambda: len(list(sweep_folder(tmp_path).glob("*/metrics.jsonl"))) == 2)
    first = next(sweep_folder(tmp_path).glob("*/status.json"))
    os.kill(json.loads(first.read_text())["pid"], signal.SIGUSR2)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert read_states(sweep_folder(tmp_path)) == ["finished", "finished"]
    log = (first.parent / "run.log").read_text()
    assert "SIGUSR2: stopped after step" in log
    assert "continuing " in log


SLURM_PROGRAMS = {  # replacements that do what submitit needs
    "sbatch": """#!/usr/bin/env python3
import os, re, subprocess, sys
last = int(re.search(r"--array=0-([0-9]+)", open(sys.argv[-1]).read())[1])
for index in range(last + 1):
    job = {"JOB_ID": 100 + index, "ARRAY_JOB_ID": 100, "ARRAY_TASK_ID": index, "NTASKS": 1, "JOB_NUM_NODES": 1,
           "NODEID": 0, "PROCID": 0, "LOCALID": 0, "JOB_NODELIST": "here"}
    own = {f"SLURM_{key}": str(value) for key, value in job.items()} | {"BATCH": sys.argv[-1]}
    subprocess.Popen(["bash", sys.argv[-1]], env=os.environ | own, start_new_session=True, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print("Submitted batch job 100")
""",
    "srun": """#!/usr/bin/env bash
while [ "${1:0:2}" = "--" ]; do if [ "$1" = --output ] || [ "$1" = --error ]; then shift 2; else shift; fi; done
exec "$@" >> "$HERE/printed" 2>&1
""",
    "sacct": """#!/usr/bin/env bash
printf 'JobID|State|NodeList\\n100_0|RUNNING|here\\n100_1|RUNNING|here\\n'
""",
    "scontrol": """#!/usr/bin/env bash
echo "$@" >> "$HERE/asked"
setsid bash "$BATCH" > /dev/null 2>&1 &
""",
}


@pytest.mark.slow
@skip_without("submitit_local")
def test_jobs_are_submitted_to_slurm_and_requeued(tmp_path, monkeypatch):
    """Replacements of Slurm's programs record how they are called; no training step is lost."""
    (tmp_path / "bin").mkdir()
    for name, text in SLURM_PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(tmp_path))
    words = [*TINY, "epochs=150", "log_every=1000", "seed=0,1", "hydra.launcher.partition=long"]
    process = start_sweep(tmp_path, "hydra/launcher=submitit_slurm", *words)
    wait_for(lambda: len(list(sweep_folder(tmp_path).glob("*/metrics.jsonl"))) == 2)
    script = next(sweep_folder(tmp_path).glob(".submitit/*/*submission.sh")).read_text()
    for line in ("--array=0-1%2", "--gpus-per-node=1", "--partition=long", "--signal=USR2@180", "--time=720"):
        assert f"#SBATCH {line}\n" in script
    first = next(sweep_folder(tmp_path).glob("*/status.json"))
    os.kill(json.loads(first.read_text())["pid"], signal.SIGUSR2)
    _, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    assert (tmp_path / "asked").read_text().startswith("requeue 100_")
    assert read_states(sweep_folder(tmp_path)) == ["finished", "finished"]
    log = (first.parent / "run.log").read_text()
    assert "SIGUSR2: stopped after step" in log
    assert "continuing " in log


@skip_without("optuna")
@pytest.mark.parametrize("metric", ["validation/accuracy", "validation/nll"])
def test_a_search_says_what_it_looks_for(metric, tmp_path, monkeypatch, capsys):
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", *TINY, "epochs=1", "optimizer=sam"]
    words += ["optimizer.m=16", "data.val_fraction=0.25", f"early_stopping.metric={metric}", "sweep_name=x"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    best = "lowest" if metric.endswith("nll") else "highest"
    assert done.stdout.count(f"searching the settings with the {best} {metric} at the end") == 1
    found = [json.loads(path.read_text())["final"][metric] for path in sweep_folder(tmp_path).glob("*/result.json")]
    objective = max(-value if metric.endswith("nll") else value for value in found)
    assert f"best_value: {objective}" in (sweep_folder(tmp_path) / "optimization_results.yaml").read_text()
    refused = invoke(monkeypatch, capsys, tmp_path, *words[:-1], "data.val_fraction=0", "sweep_name=y")
    assert refused.returncode == 2 and "needs data.val_fraction" in refused.stderr
    assert not sweep_folder(tmp_path, "y").exists()


@pytest.mark.slow
@skip_without("optuna")
def test_a_search_maximises_the_validation_accuracy_and_continues(tmp_path):
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", *TINY, "epochs=1", "batch_size=128"]
    words += ["data.drop_last=false", "data.val_fraction=0.25", "optimizer=sam", "sweep_name=x"]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text())["final"] for path in sweep_folder(tmp_path).glob("*/result.json")]
    best = (sweep_folder(tmp_path) / "optimization_results.yaml").read_text()
    assert f"best_value: {max(final['validation/accuracy'] for final in results)}" in best
    assert len(results) == 2
    again = command(*words, "hydra.sweeper.sampler.seed=1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Using an existing study" in again.stderr
    assert len(list(sweep_folder(tmp_path).glob("*/result.json"))) == 4
    refused = command(*words, "data.val_fraction=0.25", "optimizer.m=-1", cwd=tmp_path)
    assert refused.returncode == 1  # Optuna reports a study without a successful trial as an error
    assert refused.stderr.count("error: refused: ") == 2


@pytest.mark.slow
def test_a_killed_sweep_continues_to_the_same_table(tmp_path):
    words = [*TINY, "epochs=30", "checkpoint.every_steps=20", "optimizer=sgd,sam", "rho=0.05,0.1"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(list(sweep_folder(tmp_path).glob("*/result.json")))
        process = start_sweep(tmp_path, *words)
        wait_for(lambda before=before: len(list(sweep_folder(tmp_path).glob("*/result.json"))) > before)
        time.sleep(0.2)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75}[number]  # within a job and between two
    done = command("-m", *words, "sweep_name=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(sweep_folder(tmp_path).glob("*/result.json"))) == 3  # of four jobs, two of which are the same run
    assert command("-m", *words, "sweep_name=plain", cwd=tmp_path).returncode == 0
    assert read_table(sweep_folder(tmp_path)) == read_table(sweep_folder(tmp_path, "plain"))
    again = command("-m", *words, "sweep_name=x", cwd=tmp_path)
    assert again.stdout.count("already finished") == 3
    assert not re.search("^epoch ", again.stdout, re.MULTILINE)
