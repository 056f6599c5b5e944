"""Parts of a sweep without running one: outcomes of jobs, exit codes, signals, GPUs, and the guard of launchers."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
import torch
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from sam_runner.commands import train as train_command
from sam_runner.config.hydra import guard as hydra_guard
from sam_runner.config.hydra import launchers
from sam_runner.config.hydra.messages import explain
from sam_runner.reports.output import files as report_files
from sam_runner.reports.results import read_runs
from sam_runner.runs import lock
from sam_runner.runs.folder import require_usable, write_config
from sam_runner.runs.lock import lock_folder
from sam_runner.runs.plan import agree_on_precision
from sam_runner.runs.status import write_status
from sam_runner.sweeps import job_runner, outcomes, signals, sweep
from sam_runner.sweeps.jobs import plan_jobs
from sam_runner.sweeps.outcomes import read_objective
from sam_runner.sweeps.stop_flag import read_stop_flag, set_stop_flag
from sam_runner.utils.errors import FolderInUseError, InputError, RunInterrupt
from sam_runner.utils.hardware import choose_device, choose_precision
from sam_runner.utils.signals import catch_stop_signals, raise_for_signal
from tests.helpers import TINY, config_of, invoke, job_config, wait_for
from tests.run_folders import leave

JOB = ["optimizer=sam", "rho=0.1"]


@pytest.fixture(autouse=True)
def _call(monkeypatch):
    monkeypatch.setenv("SAM_RUNNER_STARTED", "this")


def write_job_status(folder, state, **details):
    folder.mkdir(parents=True, exist_ok=True)
    write_status(folder, state, **details)
    return folder


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        (["finished", "finished"], 0),
        (["finished", "failed"], 1),
        (["refused"], 1),
        (["not run"], 1),
        (["finished", "died"], 1),
        (["failed", "preempted"], 75),
        (["preempted", "interrupted", "failed"], 130),
    ],
)
def test_the_exit_code_follows_from_the_outcomes_of_the_jobs(states, code):
    assert outcomes.choose_exit_code([outcomes.JobOutcome("x", state, "") for state in states]) == code


def make_job(folder, *words, number=1):
    """A planned job of the tiny problem, and the call that runs it."""
    (job_of,), _ = plan_jobs(folder, [(words or JOB, job_config(*TINY, *(words or JOB)))], first=number)
    return job_of


EARLIER = datetime(2000, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("call", "state", "since", "expected"),
    [
        ("this", "failed", "later", "failed"),
        ("this", "preempted", "later", "preempted"),
        ("this", "running", "later", "died"),  # no process holds the lock
        ("another", "failed", "later", None),  # it failed before this call began
        ("another", "failed", "earlier", "failed"),
        ("another", "preempted", "earlier", None),  # this call continues it
        ("another", "running", "earlier", None),
    ],
)
def test_the_outcome_of_a_job_for_a_call(call, state, since, expected, tmp_path, monkeypatch):
    planned = make_job(tmp_path)
    monkeypatch.setenv("SAM_RUNNER_STARTED", call)
    write_job_status(planned.folder, state, error="boom")
    (planned.folder / ".lock").write_text("")
    monkeypatch.setenv("SAM_RUNNER_STARTED", "this")
    moment = EARLIER if since == "earlier" else outcomes.now() + timedelta(seconds=1)
    found = outcomes.read_outcome(tmp_path, planned, moment)
    assert (found and found.state) == expected
    (planned.folder / "result.json").write_text(json.dumps({"status": "finished"}))
    assert outcomes.read_outcome(tmp_path, planned, moment).state == "finished"


def test_a_refused_job_is_reported_has_a_log_and_leaves_its_own_folder_free(tmp_path):
    planned = make_job(tmp_path)
    outcomes.record_refusal(tmp_path, JOB, "no such thing\n  at all")
    (found,) = read_runs([tmp_path])
    assert (found.status, found.error, found.job) == ("refused", "no such thing\n  at all", "optimizer=sam rho=0.1")
    assert (found.folder / "run.log").read_text() == "no such thing\n  at all\n"
    assert outcomes.read_refusals(tmp_path) == [("optimizer=sam rho=0.1", "refused", "no such thing\n  at all")]
    assert require_usable(planned.folder, config_of(*TINY)) == {}
    outcomes.clear_failure(tmp_path, planned)  # it is valid now
    assert not list(tmp_path.glob("[!.p]*"))


def test_a_run_that_noted_its_own_end_is_not_noted_twice(tmp_path):
    planned = make_job(tmp_path)
    write_job_status(planned.folder, "failed", error="boom")
    outcomes.record_failure(tmp_path, planned, "failed", "boom", "boom")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [planned.folder]
    assert json.loads((planned.folder / "status.json").read_text())["job"] == "optimizer=sam rho=0.1"


def test_a_stop_is_for_one_call(tmp_path, monkeypatch):
    assert read_stop_flag(tmp_path) == ""
    set_stop_flag(tmp_path, "failure")
    assert read_stop_flag(tmp_path) == "failure"
    monkeypatch.setenv("SAM_RUNNER_STARTED", "another")
    assert read_stop_flag(tmp_path) == ""


def test_the_leftovers_of_a_sweep_are_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "sweeps" / "x"
    set_stop_flag(folder, "signal")
    (folder / "multirun.yaml").write_text("")
    (tmp_path / "outputs" / "mine").write_text("")
    outcomes.remove_leftovers(folder)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["mine"]
    write_job_status(folder / "job", "finished")
    outcomes.remove_leftovers(folder)
    assert (folder / "job" / "status.json").is_file()


def test_a_killed_run_is_reported_as_died_on_its_own_machine(tmp_path):
    config = config_of(*TINY)
    for name in ("held", "free", "far", "unlocked"):
        folder = write_job_status(tmp_path / name, "running")
        write_config(folder, config)
        (folder / "run.log").write_text("")
        if name != "unlocked":
            (folder / ".lock").write_text("")
    text = (tmp_path / "far" / "status.json").read_text().replace(socket.gethostname(), "elsewhere.example")
    (tmp_path / "far" / "status.json").write_text(text)
    with (tmp_path / "held" / ".lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        found = {record.folder.name: record.status for record in read_runs([tmp_path])}
    assert found == {"held": "running", "free": "died", "far": "running or died", "unlocked": "running or died"}


def test_a_lock_that_is_held_for_a_moment_does_not_refuse_a_folder(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("")
    with (tmp_path / ".lock").open() as reader:  # as sam-status does, for longer
        fcntl.flock(reader, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(reader, fcntl.LOCK_UN)).start()
        with lock_folder(tmp_path):
            monkeypatch.setattr(lock, "PATIENCE", 0.1)
            began = time.monotonic()
            with pytest.raises(FolderInUseError, match="in use by process"), lock_folder(tmp_path):
                pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("number", "gpus", "device"),
    [
        (None, 0, "cpu"), ("3", 0, "cpu"), (None, 1, "cuda"), ("3", 1, "cuda"), (None, 8, "cuda"),
        ("0", 8, "cuda:0"), ("7", 8, "cuda:7"), ("8", 8, "cuda:0"), ("21", 8, "cuda:5"),
    ],
)  # fmt: skip
def test_jobs_that_run_at_once_take_the_gpus_in_turn(number, gpus, device):
    assert choose_device(number, gpus) == device


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_goes_to_the_jobs_of_this_machine_and_no_further_one_starts(number, code, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for name, process, details in (("a", child, {}), ("b", other, {"call": "another"})):
        folder = write_job_status(tmp_path / name, "running", **details)
        text = (folder / "status.json").read_text().replace(f'"pid": {os.getpid()}', f'"pid": {process.pid}')
        (folder / "status.json").write_text(text)
    before = signal.getsignal(number)
    try:
        with signals.forward_signals(tmp_path) as stop:
            assert stop.code == 0
            os.kill(os.getpid(), number)
            assert child.wait(10) == -signal.SIGTERM
        assert stop.code == code
        assert read_stop_flag(tmp_path) == "signal"
        assert other.poll() is None
        assert signal.getsignal(number) is before
    finally:
        child.kill()
        other.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_between_two_jobs_ends_the_sweep_with_its_code(number):
    before = signal.getsignal(number)

    def receive():
        with signals.stop_between_jobs():
            signal.raise_signal(number)

    with pytest.raises(RunInterrupt) as stopped:
        receive()
    assert stopped.value.code == 75
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_a_sweep_at_once(tmp_path):
    def twice():
        with signals.forward_signals(tmp_path):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_sigusr2_is_caught_only_if_a_handler_is_installed():
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(1))
    try:
        with catch_stop_signals() as stop:
            signal.raise_signal(signal.SIGUSR2)
            assert not seen
            with pytest.raises(RunInterrupt) as stopped:
                raise_for_signal(stop.signal_number)
        assert (stopped.value.code, stopped.value.reason) == (75, "SIGUSR2")
        signal.raise_signal(signal.SIGUSR2)
        assert seen == [1]
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        with catch_stop_signals():
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, before)


BASIC = {
    "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
    "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "max_batch_size": None},
}
SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "timeout_min": 60,
         "submitit_folder": launchers.JOBS_FOLDER, "partition": "long",
         "additional_parameters": {}, "setup": None}  # fmt: skip
OPTUNA = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "storage": launchers.STORAGE,
          "sampler": {"_target_": "optuna.samplers.TPESampler"}, "custom_search_space": None}  # fmt: skip
RAY = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"} | launchers.DEFAULTS[
    "hydra/launcher/ray"
]


def compose(val_fraction=0.1, **plugins):
    fixed = {key: accepted[-1] for key, accepted in hydra_guard.FIXED.items() if not key.startswith(tuple(BASIC))}
    hydra = OmegaConf.create({})
    for key, value in fixed.items():
        OmegaConf.update(hydra, key, value)
    hydra = OmegaConf.merge(hydra, BASIC, plugins)
    return OmegaConf.create({"hydra": hydra, "sweep_name": "x", "data": {"val_fraction": val_fraction}})


@pytest.mark.parametrize(
    "plugins", [{}, {"launcher": SLURM}, {"sweeper": OPTUNA}, {"launcher": SLURM, "sweeper": OPTUNA}, {"launcher": RAY}]
)
def test_launchers_and_sweepers_pass_the_guard(plugins):
    hydra_guard.check(compose(**plugins))


@pytest.mark.parametrize(
    ("plugin", "change", "message"),
    [
        ("launcher", {"setup": ["touch x"]}, "hydra.launcher.setup"),
        ("launcher", {"srun_args": ["--prolog=x"]}, "srun_args"),
        ("launcher", {"python": "sh"}, "hydra.launcher.python"),
        ("launcher", {"additional_parameters": {"wrap": "x"}}, "additional_parameters"),
        ("launcher", {"partition": "x\ntouch y #"}, "line break"),
        ("launcher", {"submitit_folder": "/tmp/%j"}, "submitit_folder"),
        ("sweeper", {"storage": "sqlite:////tmp/x.db"}, "hydra.sweeper.storage"),
        ("sweeper", {"custom_search_space": "os.system"}, "custom_search_space"),
        ("sweeper", {"sampler": {"_target_": "optuna.storages.RDBStorage"}}, "optuna.storages.RDBStorage"),
    ],
)
def test_a_file_cannot_make_a_launcher_run_a_program(plugin, change, message):
    node = {"launcher": SLURM, "sweeper": OPTUNA}[plugin] | change
    with pytest.raises(InputError, match=message):
        hydra_guard.check(compose(**{plugin: node}))


HOSTILE = {
    "init.address": ["auto", "ray://far:10001", "127.0.0.1:6379", None, "${oc.env:HOME}", "${sweep_name}"],
    "init.include_dashboard": [True, None],
    "init.dashboard_host": ["0.0.0.0"],
    "init.runtime_env": [{"working_dir": "https://far/x.zip"}, {"pip": ["x"]}, {"env_vars": {"A": "b"}}],
    "init.job_config": [{}],
    "init._temp_dir": ["/tmp/x"],
    "init._system_config": [{}],
    "init.num_cpus": ["${oc.create:{_target_: os.getcwd}}", {"_target_": "os.getcwd"}],
    "init": [{}, None, "${data}"],
    "remote.runtime_env": [{"py_executable": "sh"}],
    "remote": ["${data}", {"_target_": "hydra_plugins.x"}],
    "cluster": [{"setup_commands": ["touch x"], "auth": {"ssh_private_key": "~/.ssh/id"}}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_a_file_cannot_connect_ray_elsewhere_or_change_its_environment(key, value):
    config = compose(launcher=RAY)
    config.hydra.launcher.ray = dict(config.hydra.launcher.ray)  # `update` would merge
    parent, _, name = f"ray.{key}".rpartition(".")
    OmegaConf.select(config.hydra.launcher, parent)[name] = value
    with pytest.raises(InputError, match=r"hydra\.launcher"):
        hydra_guard.check(config)


def test_ray_starts_no_machines():
    target = "hydra_plugins.hydra_ray_launcher.ray_aws_launcher.RayAWSLauncher"
    with pytest.raises(InputError, match="ray_aws is refused"):
        hydra_guard.check(compose(launcher=RAY | {"_target_": target}))


@pytest.mark.parametrize("key", ["num_cpus", "num_gpus"])
def test_a_job_that_ray_could_never_start_is_refused(key, monkeypatch):
    for name in launchers.RAY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    config = compose(launcher=RAY)
    config.hydra.launcher.ray.init.update({"num_cpus": 2, "num_gpus": 2})
    config.hydra.launcher.ray.remote.update({"num_cpus": 1, "num_gpus": 0, key: 2})
    launchers.prepare(config.hydra)
    assert {name: os.environ[name] for name in launchers.RAY} == launchers.RAY | {"RAY_DEDUP_LOGS": "1"}
    config.hydra.launcher.ray.remote[key] = 3
    with pytest.raises(InputError, match=rf"remote\.{key}=3: there are 2"):
        launchers.prepare(config.hydra)
    launchers.prepare(compose().hydra)  # another launcher's is left alone


def test_a_refusal_before_a_sweep_is_reported(tmp_path, monkeypatch, capsys):
    """Hydra composes once to determine its mode, and ignores errors while it does."""

    def refuse(_):
        raise InputError("too much")

    monkeypatch.setattr(launchers, "prepare", refuse)
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "seed=0,1", "sweep_name=x")
    assert done.returncode == 2
    assert "too much" in done.stderr
    assert not list(tmp_path.iterdir())


def test_signal_handlers_are_installed_again_before_each_job(tmp_path, monkeypatch, capsys):
    before, seen = signal.getsignal(signal.SIGTERM), []
    with signals.forward_signals(tmp_path) as stop:
        ours = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop.install_handlers()
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(launchers, "in_subprocesses", lambda _: True)
    monkeypatch.setattr(job_runner, "run_job", lambda *_: seen.append("job"))
    stop = contextlib.nullcontext(signals.SweepStop(lambda: seen.append("install")))
    monkeypatch.setattr(signals, "forward_signals", lambda _: stop)
    monkeypatch.setattr(report_files, "write_sweep_report", lambda _: None)  # saves time: no job has a run
    invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "seed=0,1", "sweep_name=x", "sweep.jobs=auto")
    assert seen[-4:] == ["install", "job", "install", "job"]


def test_a_launcher_that_exits_with_a_signal_number_gives_code_75(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train_command, "_run_hydra", lambda *_: int(signal.SIGTERM))
    assert invoke(monkeypatch, capsys, tmp_path, "-m", "seed=0,1").returncode == 75


def test_a_search_needs_held_out_images():
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.1"):
        hydra_guard.check_search(compose(val_fraction=0.0, sweeper=OPTUNA))
    for direction in ("minimize", ["maximize", "minimize"]):
        with pytest.raises(InputError, match=r"(?s)hydra\.sweeper\.direction=.*early_stopping\.metric=validation/nll"):
            hydra_guard.check_search(compose(sweeper=OPTUNA | {"direction": direction}))
    hydra_guard.check_search(compose(sweeper=OPTUNA | {"direction": "maximize"}))


@pytest.mark.parametrize(("missing", "extra"), sorted(launchers.EXTRAS.items()))
def test_a_plugin_that_is_not_installed_is_answered_with_its_extra(missing, extra, tmp_path):
    error = MissingConfigException("", missing_cfg_file=missing, options=["basic"])
    assert f"pip install 'sam-runner[{extra}]'" in explain(error, tmp_path, [])


def test_a_job_of_another_call_is_left_to_it_the_others_are_run_first_and_then_it_is_waited_for(
    tmp_path, monkeypatch, capsys
):
    words = [*TINY, "epochs=1", "seed=0,1", "sweep_name=s"]
    sweep_folder = tmp_path / "outputs" / "sweeps" / "s"
    first = [word.replace("seed=0,1", "seed=0") for word in words] + ["sweep.jobs=1"]
    folder = make_job(sweep_folder, *first).folder
    folder.mkdir(parents=True)
    other = contextlib.ExitStack()
    other.enter_context(lock_folder(folder))

    def release():
        wait_for(lambda: list(sweep_folder.glob("*seed=1*/result.json")))
        other.close()

    thread = threading.Thread(target=release)
    thread.start()
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *words)
    thread.join()
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^job (\d):", done.stdout, re.MULTILINE)[-2:] == ["2", "1"]
    assert len(list(sweep_folder.glob("*/result.json"))) == 2
    assert not (sweep_folder / "not_started").exists()


def test_every_job_has_the_precision_that_the_sweep_began_with(tmp_path, monkeypatch, capsys):
    sweep_folder = tmp_path / "outputs" / "sweeps" / "s"
    own, _ = choose_precision(torch.device("cpu"))
    other = "fp32" if own == "bf16" else "bf16"
    agree_on_precision(sweep_folder, "cpu", other)
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "max_steps=1", "seed=0", "sweep_name=s")
    assert done.returncode == 0, done.stderr
    (environment,) = sweep_folder.glob("*/environment.json")
    assert json.loads(environment.read_text())["resolved_precision"] == other
    assert f"precision {other}: chosen by the first job of the sweep" in done.stdout
    assert "precision: auto" in environment.with_name("config.yaml").read_text()
    single = invoke(monkeypatch, capsys, tmp_path, *TINY, "max_steps=1", "run_dir=run")
    assert single.returncode == 0, single.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["resolved_precision"] == own
    assert single.stdout.splitlines()[-4:] == [
        "next: sam-eval run", "next: tensorboard --logdir run", "next: sam-train config=run seed=1",
        "next: sam-train resume=run epochs=4 max_steps=2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "given", "gpus", "at_once"),
    [
        ("auto", "auto", 0, 6), ("auto", "auto", 4, 4), ("cpu", "auto", 4, 6), ("cuda", "auto", 4, 1),
        ("cuda:2", "auto", 4, 1), ("auto", 9, 4, 9), ("cpu", 1, 0, 1),
    ],
)  # fmt: skip
def test_jobs_at_once_are_as_many_as_gpus_or_cores(device, given, gpus, at_once, monkeypatch):
    monkeypatch.setattr(sweep, "count_gpus", lambda: gpus)
    monkeypatch.setattr(sweep, "count_usable_cores", lambda: 6)
    config = compose()
    options = {"jobs": given, "batch_seeds": 1, "on_error": "continue", "verbose": False}
    config.update({"device": device, "sweep": options, "dry_run": False})
    config.hydra.sweep.dir = "x"
    assert sweep.Sweep(config).in_this_process is (at_once == 1)
    assert sweep._choose_jobs_at_once(config, has_launcher=False) == at_once
    search = compose(sweeper=OPTUNA | {"n_jobs": 2})
    search.update({"device": device, "sweep": {"jobs": given}})
    if given == 9:
        with pytest.raises(InputError, match=r"hydra\.sweeper\.n_jobs=9"):
            sweep._choose_jobs_at_once(search, has_launcher=False)
    elif given == "auto":
        assert sweep._choose_jobs_at_once(search, has_launcher=False) == min(2, at_once)


@pytest.mark.parametrize(
    ("metric", "objective"), [("validation/accuracy", 0.75), ("validation/nll", -0.5), ("validation_ema/nll", -0.25)]
)
def test_a_search_maximises_the_metric_of_early_stopping(metric, objective, tmp_path):
    ema = ("ema_decay=0.9",) if "ema" in metric else ()
    config = job_config("optimizer=sam", "data.val_fraction=0.1", f"early_stopping.metric={metric}", *ema)
    (job,), _ = plan_jobs(tmp_path, [((), config)], write=False)
    assert read_objective(job) is None
    final = {"validation/accuracy": 0.75, "validation/nll": 0.5, "validation_ema/nll": 0.25}
    leave(job.folder, config, accuracy=0.5, **final)
    assert read_objective(job) == objective


def test_the_launcher_of_joblib_is_answered_by_the_setting_in_its_place():
    target = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    with pytest.raises(InputError, match=r"sweep\.jobs=8"):
        hydra_guard.check(compose(launcher={"_target_": target, "n_jobs": 4, "backend": None}))
