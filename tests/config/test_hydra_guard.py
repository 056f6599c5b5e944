"""Configuration files of strangers: nothing in them runs, by whatever key."""

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.compose import plain_settings
from sam_runner.config.instantiate import locate
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, compose_config, invoke, train_tiny, write_experiment


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


HOSTILE = {
    "environment": "hydra: {job: {env_set: {SAM_RUNNER_TRUSTED: subprocess}}}",
    "callback": "hydra: {callbacks: {x: {_target_: torch.serialization.load, f: EVIL, weights_only: false}}}",
    "logging factory": "hydra: {job_logging: {handlers: {x: {class: subprocess.getoutput, cmd: touch MARKER}}}}",
    "logging of hydra": "hydra: {hydra_logging: {handlers: {x: {class: subprocess.getoutput, cmd: touch MARKER}}}}",
    "launcher": "hydra: {launcher: {_target_: subprocess.getoutput, cmd: touch MARKER}}",
    "computed": "hydra: {sweeper: {params: '${oc.create:{_target_: torch.serialization.load, f: EVIL, weights_only: "
    "false}}'}}",
    "sweeper": "hydra: {sweeper: {_target_: subprocess.getoutput, cmd: touch MARKER}}",
    "folder": "hydra: {run: {dir: MARKER}}",
    "output folder": "hydra: {output_subdir: MARKER}",
    "another folder": "hydra: {job: {chdir: true}}",
    "model": "model: {_target_: subprocess.getoutput, cmd: touch MARKER}",
    "through our modules": "model: {_target_: sam_runner.data.datasets.digits.gzip.open, filename: MARKER, mode: w}",
    "timm": "model: {_target_: timm.models._helpers.load_state_dict, checkpoint_path: EVIL, weights_only: false}",
    "hidden": "model: {_target_: torchvision.models._utils.os.system, command: touch MARKER}",
}


@pytest.mark.parametrize("mode", [[], ["-m", "seed=0,1"]])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_runs_nothing_and_makes_no_folder(name, mode, tmp_path, monkeypatch, capsys):
    marker, evil, work = tmp_path / "ran", tmp_path / "evil.pt", tmp_path / "work"
    work.mkdir()
    evil.write_bytes(pickle.dumps({"model": Marker(marker)}))
    text = HOSTILE[name].replace("MARKER", str(marker)).replace("EVIL", str(evil))
    write_experiment(tmp_path, f"# @package _global_\n{text}\n", "evil")
    arguments = [*mode, "--config-dir", tmp_path / "mine", "experiment=evil", *TINY]
    done = invoke(monkeypatch, capsys, work, *arguments)
    assert done.returncode in ([1, 2] if mode else [2]), done.stderr
    assert "error: " in done.stderr
    assert not marker.exists()
    assert "SAM_RUNNER_TRUSTED" not in os.environ
    assert not list(work.rglob("config.yaml"))


@pytest.mark.parametrize(
    "name", ["torchvision.models._api.get_model", "timm.create_model", "sam_runner.utils.files.sha256"]
)
def test_names_outside_the_list_are_refused(name):
    with pytest.raises(InputError, match="trusted module"):
        locate(name)


def test_a_pickled_rerun_is_refused(tmp_path, monkeypatch, capsys):
    marker = tmp_path / "ran"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Marker(marker)))
    done = invoke(monkeypatch, capsys, tmp_path, "--experimental-rerun", tmp_path / "evil.pkl")
    assert done.returncode == 2
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../out", "a/b", "", "..", "x" * 300])
def test_a_sweep_stays_in_its_folder(name, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, f"sweep_name='{name}'", "seed=0,1")
    assert done.returncode == 2
    assert "sweep_name" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["optimizer.base=adamw"], "optimizer/base=adamw"),
        (["data=null"], "data"),
        (["debug=true"], "debug"),
        (["device=cuda:"], "device=cuda:"),
        (["device=cpu:"], "device=cpu:"),
        (["sweep_name=alone"], "run_dir=FOLDER"),
        (["run_dir="], "run_dir is empty"),
        (["run_dir=" + "x" * 300], "cannot be"),
        (["ema_decay=0"], "(0, 1)"),
        (["lr=0.1", "optimizer.base.lr=0.2"], "leave one out"),
        (["accumulate=8", "optimizer.m=4"], "no effect"),
        (["augment.cutout=100"], "augment.cutout=100"),
        (["optimizer/base=adamw", "optimizer.base.betas=[0.9]"], "betas"),
        (["data=image_folder", "data.root=~nosuchuser/x"], "~nosuchuser"),
        (["--config-dir", "nowhere"], "nowhere"),
        (["optimizer=sam", "optimizer.base.momentum=0"], "momentum"),
    ],
)
def test_more_bad_input(arguments, named, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert "unknown key \n" not in done.stderr
    assert len(done.stderr.splitlines()) <= 20
    assert not list(tmp_path.iterdir())


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a 1\nb: *a\n", "a: &a {b: *a}\n", "<<: &x {a: 1}\nb: *x\n"])
def test_aliases_are_refused_at_once(text, tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, text, "bomb")
    started = time.perf_counter()
    done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", "mine", "+experiment=bomb")
    assert done.returncode == 2
    assert "aliases are not accepted" in done.stderr
    assert "bomb.yaml" in done.stderr
    assert time.perf_counter() - started < 5


def test_aliases_in_the_settings_of_a_run_are_refused(tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run", "optimizer=sgd")
    (folder / "config.yaml").write_text(BOMB)
    done = invoke(monkeypatch, capsys, tmp_path, folder, entry=evaluate_command.main)
    assert done.returncode == 2
    assert "aliases, which are not accepted" in done.stderr


def test_a_file_nested_too_deeply_is_refused(tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, "a: " + "[" * 20_000, "deep")
    done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", "mine", "+experiment=deep")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_yaml_is_named_shortly(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "broken.yaml").write_text("a: [1,\nb: {")
    done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", tmp_path / "mine", "model=broken")
    assert done.returncode == 2
    assert "broken.yaml" in done.stderr
    assert len(done.stderr.splitlines()) <= 20


def test_flags_may_stand_anywhere(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "optimizer=sam", "--cfg", "job", "rho=0.2", "--resolve")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rho: 0.2") == 2


def test_ranges_of_our_options_do_not_bind_other_peoples_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_models")
    settings = plain_settings(compose_config(*TINY))
    settings["model"] = {"_target_": "my_models.vit", "depth": 4, "width": [64, 128], "dropout": 2}
    load_experiment(settings)
    settings["optimizer"]["base"] = {"_target_": "torch.optim.SGD", "lr": float("nan"), "weight_decay": 0.0}
    with pytest.raises(InputError, match=r"optimizer\.base\.lr=nan"):
        load_experiment(settings)


def test_a_failing_cell_is_told_at_once_and_leaves_nothing_alive(tmp_path, monkeypatch, capsys):
    import gc

    from sam_runner.training.loop import Run

    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "lr=1e30,2e30", "sweep_name=x")
    assert done.returncode == 1
    gc.collect()
    assert not [entry for entry in gc.get_objects() if type(entry) is Run]
    assert done.stderr.index("not finite") < done.stderr.index("failed: ")


def test_an_interrupt_still_lists_the_cells_that_failed(tmp_path, monkeypatch, capsys):
    from sam_runner.training import loop

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "evaluate", interrupt)
    done = invoke(monkeypatch, capsys, tmp_path, "-m", *TINY, "lr=-1,0.05", "sweep_name=x")
    assert done.returncode == 130
    assert "refused: " in done.stderr
    assert "lr=-1" in done.stderr


@pytest.mark.parametrize("options", [["max_steps=1", "epochs=1"], ["epochs=1", "log_every=1"]])
def test_an_explosion_in_the_last_step_is_no_finished_run(options, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, *options, "lr=1e30", "run_dir=run")
    assert done.returncode == 1
    assert "not finite" in done.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list(tmp_path.rglob("*.pt"))


def test_a_folder_in_use_is_refused(tmp_path):
    from sam_runner.runs.lock import lock_folder

    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"), pytest.raises(InputError, match="in use"):
        train_tiny(tmp_path / "run")
    train_tiny(tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


def test_changed_data_are_refused_by_sam_eval(tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("data_seed: 0", "data_seed: 1"))
    done = invoke(monkeypatch, capsys, tmp_path, folder, entry=evaluate_command.main)
    assert done.returncode == 2
    assert "have changed" in done.stderr


def test_an_unknown_device_is_refused_by_sam_eval(tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run")
    done = invoke(monkeypatch, capsys, tmp_path, folder, "--device", "foo", entry=evaluate_command.main)
    assert done.returncode == 2
    assert "device=foo is not known" in done.stderr


@pytest.mark.parametrize(
    ("old", "new"), [("batch_size: 16", "batch_size: abc"), ("width: 4", "width: 8"), ("seed: 0", "seed: x")]
)
def test_a_damaged_config_is_an_input_error_of_sam_eval(old, new, tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run")
    config = folder / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    done = invoke(monkeypatch, capsys, tmp_path, folder, entry=evaluate_command.main)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) <= 20


def test_zero_gradient_keeps_the_weights_finite_with_the_second_order_term():
    from torch import nn
    from torch.nn import functional as F

    from sam_runner.sam.batch import Batch
    from sam_runner.sam.methods import SecondOrder
    from sam_runner.sam.objective import Objective
    from sam_runner.sam.step import SamStep

    for p in (1, 1.5, 2, 3, float("inf")):
        model = nn.Linear(2, 2)
        model.weight.data = torch.tensor([[200.0, 0], [-200.0, 0]])
        model.bias.data.zero_()
        before = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = SamStep(Objective(model, F.cross_entropy), optimizer, method=SecondOrder(p))
        step(Batch(torch.tensor([[1.0, 0], [2.0, 0]]), torch.tensor([0, 0])), 0.05)
        assert torch.equal(model.weight, before)


def test_a_reader_of_the_help_may_go_away(tmp_path):
    shell = f"{sys.executable} -m sam_runner --help | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_ctrl_c_names_the_way_to_continue(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "sam_runner", *TINY, "epochs=100000", "run_dir=run"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to continue the run: sam-train resume=run" in printed
