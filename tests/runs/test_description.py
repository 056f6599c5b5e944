"""The settings that the user chose and the facts of a run, for TensorBoard."""

import json

import pytest

from sam_runner.runs.description import chosen_settings, swept_settings
from tests.helpers import TINY, config_of, invoke, train_tiny, write_experiment
from tests.runs.test_logging import read_events, read_hparams


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("optimizer=sam", "rho=0.1", "seed=3"), {"optimizer": "sam", "rho": 0.1, "seed": 3}),
        (("optimizer=sam", "lr=0.2", "optimizer.p=inf"), {"optimizer": "sam", "lr": 0.2, "optimizer.p": float("inf")}),
        (("noise=symmetric", "noise.rate=0.4"), {"noise": "symmetric", "noise.rate": 0.4}),
        (("grad_clip=null",), {"grad_clip": "None"}),
        (("run_dir=x", "device=cpu", "checkpoint.keep=3", "epochs=2"), {"epochs": 2}),
        (("data=cifar10", "data.root=x", "augment=basic"), {"data": "cifar10", "augment": "basic"}),
    ],
)  # fmt: skip
def test_settings_that_were_typed_and_change_numbers_are_chosen(words, expected):
    assert chosen_settings(config_of(*words), words) == expected


def test_without_a_perturbation_rho_is_0():
    assert chosen_settings(config_of("optimizer=sgd"), ["optimizer=sgd", "rho=0.1"]) == {"optimizer": "sgd", "rho": 0.0}


def test_settings_with_several_values_are_swept():
    command = ["sam-train", "-m", "optimizer=sgd,sam", "rho=range(1,3)", "+optimizer.base.eps=1,2", "epochs=3"]
    assert swept_settings(command) == {"optimizer", "rho", "optimizer.base.eps"}
    assert swept_settings(["sam-train", "augment.betas=[1,2]"]) == set()


def test_the_command_is_recorded_as_it_was_typed(tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, "# @package _global_\nlr: 0.125\n")
    typed = ["experiment=own", "-m", *TINY, "max_steps=1", "seed=0,1", "--config-dir", "mine", "sweep_name=007"]
    done = invoke(monkeypatch, capsys, tmp_path, *typed, "sweep.jobs=1")
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "outputs" / "sweeps" / "007").glob("seed=*"))
    for folder in folders:
        environment = json.loads((folder / "environment.json").read_text())
        assert environment["command"] == ["sam-train", *typed, "sweep.jobs=1"]
        (event,) = read_events(folder).Tensors("run/text_summary")
        text = event.tensor_proto.string_val[0].decode()
        assert "**command:** sam-train experiment=own -m data=synthetic" in text
        assert "--config-dir mine sweep" in text
        assert "**settings:** experiment=own data=synthetic" in text
    typed = [f"config={folders[0]}", "run_dir=again"]
    assert invoke(monkeypatch, capsys, tmp_path, *typed).returncode == 0
    assert json.loads((tmp_path / "again" / "environment.json").read_text())["command"] == ["sam-train", *typed]


def test_a_run_has_a_text_with_its_command_commit_and_data_and_its_typed_settings(tmp_path):
    folder = train_tiny(tmp_path / "run", "optimizer=sam", "rho=0.1", "noise=symmetric", "noise.rate=0.5", "epochs=1")
    (event,) = read_events(folder).Tensors("run/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    parts = (
        "**settings:** data=synthetic", "rho=0.1", "**commit:**", "96 train, 32 test images, 4 classes",
        "training labels corrupted", "parameters", "sam with rho 0.1", "**hardware:**",
    )  # fmt: skip
    for part in parts:
        assert part in text, part
    started = read_hparams(folder, "_hparams_/session_start_info").session_start_info.hparams
    assert {"optimizer", "rho", "noise", "noise.rate", "epochs", "data.num_train"} <= {*started}
    assert {"run_dir", "checkpoint.min_interval", "optimizer.rho", "lr"}.isdisjoint(started)
