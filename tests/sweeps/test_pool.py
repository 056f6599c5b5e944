"""Jobs of a sweep in several processes of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sam_runner.sweeps.claims import claim
from tests.helpers import TINY, command, environment_of_a_call, invoke, wait_for

LONG = (*TINY, "epochs=100000", "log_every=1000")
pytestmark = pytest.mark.timeout(300)


def sweep_folder(tmp_path):
    return tmp_path / "outputs" / "sweeps" / "x"


def read_states(folder):
    return sorted(json.loads(path.read_text())["status"] for path in folder.glob("*/status.json"))


def start_sweep(folder, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "sam_runner", "-m", *arguments, "sweep_name=x", "sweep.jobs=2"], cwd=folder,
        env=environment_of_a_call(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **options,
    )  # fmt: skip


def wait_for_training(tmp_path, count):
    wait_for(lambda: len(list(sweep_folder(tmp_path).glob("*/metrics.jsonl"))) >= count)


def worker_ids(folder):
    return [json.loads(path.read_text())["pid"] for path in folder.glob("*/status.json")]


def is_alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_jobs_at_once_have_the_results_of_jobs_one_after_the_other(tmp_path, monkeypatch, capsys):
    words = [*TINY, "optimizer=sgd,sam", "rho=0.05,0.1", "precision=fp32"]
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "sweep_name=x", "sweep.jobs=2")
    assert done.returncode == 0, done.stderr
    assert "4 jobs, 3 of them distinct: equal jobs run once\n2 jobs at once (sweep.jobs)" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: tensorboard --logdir outputs/sweeps/x"
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("[2]")} == {"job", "finished:"}
    assert all("epoch 2/2 " in path.read_text() for path in sweep_folder(tmp_path).glob("*/run.log"))
    more = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "seed=1", "sweep_name=more", "sweep.jobs=2",
                  "sweep.verbose=true")  # fmt: skip
    assert re.search(r"^\[2\] epoch 2/2 ", more.stdout, re.MULTILINE)
    environments = [json.loads(path.read_text()) for path in sweep_folder(tmp_path).glob("*/environment.json")]
    assert [found["threads"] for found in environments] == [1, 1, 1]
    assert {found["resolved_precision"] for found in environments} == {"fp32"}
    alone = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "sweep_name=one", "sweep.jobs=1")
    assert alone.returncode == 0, alone.stderr
    for path in sweep_folder(tmp_path).glob("*/metrics.jsonl"):
        other = sweep_folder(tmp_path).parent / "one" / path.parent.name / path.name
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_its_own_job_only(tmp_path):
    process = start_sweep(tmp_path, *LONG, "seed=0,1,2")
    wait_for_training(tmp_path, 2)
    os.kill(worker_ids(sweep_folder(tmp_path))[0], signal.SIGKILL)
    wait_for_training(tmp_path, 3)  # another process takes the next job
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert read_states(sweep_folder(tmp_path)) == ["preempted", "preempted", "running"]
    assert "a process of the sweep was ended by SIGKILL" in output
    assert errors.count("error: died: ") == 1
    assert "Traceback" not in errors
    again, status = output.splitlines()[-2:]
    assert again.startswith("next: python -m sam_runner -m data=synthetic") and again.endswith("sweep.jobs=2")
    assert status == "next: sam-status outputs/sweeps/x"
    assert not list(sweep_folder(tmp_path).glob(".stop*"))


@pytest.mark.slow
def test_the_processes_hold_no_semaphore_that_a_killed_resource_tracker_could_miss(tmp_path):
    """Without its list, the tracker that Python starts in its place prints a KeyError for each that is given back."""
    process = start_sweep(tmp_path, *LONG, "seed=0,1")
    wait_for_training(tmp_path, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (tracker,) = [pid for pid in children if b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(tracker), signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors


FATAL = """
import os, signal
from pathlib import Path

from torch import nn

def build(number, num_classes, **ignored):
    if number == 0 and not Path("tamed").exists():
        HOW
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize(
    ("how", "jobs"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 2),
        pytest.param("os._exit(0)", 2, marks=pytest.mark.slow),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 1, marks=pytest.mark.slow),
    ],
)
def test_a_job_that_is_killed_before_its_run_begins_keeps_no_other_from_running(
    how, jobs, tmp_path, monkeypatch, capsys
):
    (tmp_path / "fatal.py").write_text(FATAL.replace("HOW", how))
    words = [*TINY, "epochs=1", "model._target_=fatal.build", "+model.number=0,1,2", "sweep_name=x"]
    environment = {"SAM_RUNNER_TRUSTED": "fatal", "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "fatal")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fatal", raising=False)
    if jobs == 2:
        first = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "sweep.jobs=2")
        assert first.returncode == 1, first.stderr
        assert len(list(sweep_folder(tmp_path).glob("*/result.json"))) == 2
        assert re.findall(r"^error: died: .*model\.number=(\d).*\n  (.+)$", first.stderr, re.MULTILINE) == [
            ("0", "its process was ended before the run began, for lack of memory perhaps")
        ]
        assert [path.name.split(",")[0] for path in sweep_folder(tmp_path).glob("not_started/*")] == ["model.number=0"]
    else:  # the command itself was killed; the next one runs the other jobs first
        for _ in range(2):
            killed = command("-m", *words, "sweep.jobs=1", cwd=tmp_path, env=environment)
            assert killed.returncode == -signal.SIGKILL
        assert len(list(sweep_folder(tmp_path).glob("*/result.json"))) == 2
    (tmp_path / "tamed").touch()
    again = invoke(monkeypatch, capsys, tmp_path, "-m", *words, "sweep.jobs=1")
    assert again.returncode == 0, again.stderr
    assert len(list(sweep_folder(tmp_path).glob("*/result.json"))) == 3
    assert not [*sweep_folder(tmp_path).glob("not_started"), *sweep_folder(tmp_path).glob(".begun*")]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_every_job(tmp_path):
    process = start_sweep(tmp_path, *LONG, "seed=0,1")
    wait_for_training(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert set(read_states(sweep_folder(tmp_path))) <= {"interrupted", "preempted"}
    assert len(list(sweep_folder(tmp_path).glob("*/checkpoints/step-*.pt"))) >= 2


@pytest.mark.slow
def test_jobs_end_with_the_sweep_that_is_killed_and_two_calls_finish_it_together(tmp_path):
    words = [*TINY, "epochs=40", "optimizer=sgd,sam", "rho=0.05,0.1", "seed=0,1"]
    process = start_sweep(tmp_path, *words)
    wait_for_training(tmp_path, 2)
    process.kill()
    process.communicate()
    ids = worker_ids(sweep_folder(tmp_path))
    calls = [start_sweep(tmp_path, *words) for _ in range(2)]
    outputs = [call.communicate(timeout=200) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outputs
    assert not any(map(is_alive, ids))
    assert len(list(sweep_folder(tmp_path).glob("*/result.json"))) == 6
    assert all(errors == "" for _, errors in outputs)
    log = "".join(path.read_text() for path in sweep_folder(tmp_path).glob("*/run.log"))
    assert log.count(" finished: ") == 6  # no job was trained twice


def test_a_claim_is_held_by_one_process_and_each_job_has_its_own(tmp_path):
    code = (
        "import sys; from pathlib import Path; from sam_runner.sweeps.claims import claim\n"
        "with claim(Path(sys.argv[1]), sys.argv[2]) as held: print(held)"
    )

    def ask(fingerprint):
        words = [sys.executable, "-c", code, str(tmp_path), fingerprint]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    with claim(tmp_path, "ffffffffffff") as held:
        assert held
        assert (ask("ffffffffffff"), ask("fffffffffffe")) == ("False", "True")
    assert ask("ffffffffffff") == "True"
