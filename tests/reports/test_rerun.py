"""The commands of further runs that a report prints: typed as they are, they train what they say."""

import itertools
import shlex
from dataclasses import replace

import pytest

from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.command_line import parse_command_line
from sam_runner.config.hydra.compose import compose_experiment, compose_settings, plain_settings
from sam_runner.reports.report import make_report
from sam_runner.reports.rerun import same_sweep, train_command
from tests.helpers import TINY, invoke, write_experiment
from tests.run_folders import leave

NOISE = ("noise=symmetric", "noise.rate=0.4")
READABLE = "sam-train -m optimizer=sam"
SEARCHED = f"{READABLE} rho=0.1 noise=symmetric noise.rate=0.4 "
CASES = {  # what was typed beside optimizer=sgd,sam; how the final command for SAM begins
    "radii": (["rho=choice(0.02,0.1)", *NOISE, "data.val_fraction=0.1"], f"{READABLE} rho=0.1 "),
    "search": (["search=rho", *NOISE], SEARCHED),
    "search with values": (["search=rho", "rho=0.02,0.1", *NOISE], f"{READABLE} rho=0.1 noise=symmetric "),
    "search with full name": (["optimizer.rho=0.02,0.1", "search=rho"], f"{READABLE} optimizer.rho=0.1 data="),
    "part": (["rho=0.02,0.1", "data.val_fraction=0.1", "data.train_fraction=0.5"],
             f"{READABLE} rho=0.1 data.train_fraction=0.5 "),
    "noisy labels": (["search=rho", *NOISE, "data.val_labels=noisy", "sweep.jobs=1"], SEARCHED),
    "own option": (["--config-dir", "mine", "experiment=own", "rho=0.02,0.1"],
                   "sam-train -m --config-dir mine optimizer=sam experiment=own rho=0.1 "),
    "file": (["config=own.yaml", "rho=0.02,0.1"], "sam-train -m config=s/sam-0.1-0 data.val_fraction=0 "),
    "unknown": (None, "sam-train -m config=s/sam-0.1-0 data.val_fraction=0 data.val_labels=clean "),
}  # fmt: skip
OWN = "lr: 0.125\nnoise: {rate: 0.4}\ndata: {val_fraction: 0.1, val_labels: noisy}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with an option and a file of the user."""
    monkeypatch.chdir(tmp_path)
    option = "# @package _global_\ndefaults:\n  - override /noise: symmetric\n" + OWN
    write_experiment(tmp_path, option)
    (tmp_path / "own.yaml").write_text("lr: 0.125\ndata.val_fraction: 0.1\n")
    return tmp_path


def compose_line(words):
    line = parse_command_line(words)
    overrides = [word for word in line.overrides if not word.startswith(("seed=", "sweep"))]
    settings = compose_settings(overrides, config_dir=line.config_dir, config_file=line.config_file)
    return load_experiment(plain_settings(settings)).with_absolute_paths()


def lay_sweep(folder, typed, seeds=(0, 1)):
    """SGD and SAM with two radii on some seeds, the larger radius the better; returns the settings of the chosen."""
    words = typed if typed is not None else [*NOISE, "data.val_fraction=0.1", "data.val_labels=noisy"]
    environment = {"command": ["sam-train", "-m", "optimizer=sgd,sam", *words, *TINY], "folder": str(folder)}
    fixed = [word for word in words if not word.startswith(("rho=", "optimizer.rho=", "sweep."))]
    chosen = {}
    for name, rho in (("sgd", 0.05), ("sam", 0.02), ("sam", 0.1)):
        chosen[name] = compose_line([*fixed, f"optimizer={name}", *([f"rho={rho}"] if name == "sam" else []), *TINY])
        for seed in seeds:
            leave(folder / "s" / f"{name}-{rho}-{seed}", replace(chosen[name], seed=seed), accuracy=0.5 + rho,
                  environment=None if typed is None else environment, **{"validation/accuracy": rho})  # fmt: skip
    return chosen


@pytest.mark.parametrize("case", CASES)
def test_the_final_commands_train_the_chosen_settings_in_one_sweep(case, folder, monkeypatch, capsys):
    typed, begin = CASES[case]
    chosen = lay_sweep(folder, typed)
    commands = [command for _, command in make_report([(folder / "s").relative_to(folder)]).next_commands]
    assert commands[1].startswith(begin)
    for name, command in zip(("sgd", "sam"), commands, strict=True):
        words = shlex.split(command)[1:]
        assert words[-2:] == ["seed=0,1,2", "sweep_name=s-final"]
        data = replace(chosen[name].data, val_fraction=0.0, val_labels="clean")
        assert compose_line(words[1:]).fingerprint() == replace(chosen[name], data=data).fingerprint()
        done = invoke(monkeypatch, capsys, folder, *(word for word in words if word != "sweep.jobs=1"), "dry_run=true")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_chosen_value_of_a_search_is_in_the_final_command_if_it_is_the_default(folder):
    environment = {"command": ["sam-train", "-m", "optimizer=sgd,sam", "search=rho", *TINY], "folder": str(folder)}
    for words, best in (
        (["optimizer=sgd"], 0.1),
        (["optimizer=sam", "rho=0.05"], 0.9),
        (["optimizer=sam", "rho=0.1"], 0.2),
    ):
        config = compose_line([*words, "data.val_fraction=0.1", *TINY])
        leave(folder / "s" / "-".join(words), config, accuracy=best, environment=environment,
                  **{"validation/accuracy": best})  # fmt: skip
    commands = [command for _, command in make_report([folder / "s"]).next_commands]
    assert "rho" not in commands[0]
    assert commands[1].startswith("sam-train -m optimizer=sam rho=0.05 data=synthetic ")


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_runs_with_a_patience_keep_their_held_out_images(seeds, folder, monkeypatch, capsys):
    early = ["early_stopping.patience=2", "early_stopping.metric=validation/nll", "data.val_labels=noisy"]
    chosen = lay_sweep(folder, ["rho=0.02,0.1", *NOISE, "data.val_fraction=0.25", *early], seeds=seeds)
    commands = make_report([folder / "s"]).next_commands
    if len(seeds) == 3:  # these are the final runs
        assert commands == []
        return
    for name, (purpose, command) in zip(("sgd", "sam"), commands, strict=True):
        assert "with the held-out images that early_stopping.patience needs, with 3 seeds for" in purpose
        words = shlex.split(command)[1:]
        assert compose_line(words[1:]).fingerprint() == chosen[name].fingerprint()
        assert invoke(monkeypatch, capsys, folder, *words).returncode == 0


def test_a_metric_of_held_out_images_is_left_out_of_final_runs_without_them(folder, monkeypatch, capsys):
    lay_sweep(folder, ["rho=0.02,0.1", "data.val_fraction=0.25", "early_stopping.metric=validation/nll"])
    for purpose, command in make_report([folder / "s"]).next_commands:
        assert " on all training images" in purpose
        assert "early_stopping" not in command
        assert invoke(monkeypatch, capsys, folder, *shlex.split(command)[1:]).returncode == 0


def test_final_runs_are_compared_and_none_is_selected(folder):
    for name, seed in itertools.product(("sgd", "sam"), range(3)):
        config = replace(compose_experiment([f"optimizer={name}"]), seed=seed)
        leave(folder / f"{name}{seed}", config, accuracy=0.8 + seed / 100)
    report = make_report([folder])
    assert (report.best, report.next_commands) == (set(), [])
    for text in (report.to_text(), report.to_markdown()):
        assert "*:" not in text
        assert "Selected" not in text
        assert "optimistic" not in text


def test_seeds_that_are_added_are_explained(folder):
    lay_sweep(folder, CASES["radii"][0])
    purposes = [purpose for purpose, _ in make_report([folder / "s"]).next_commands]
    assert all(purpose.endswith(" on all training images, with 3 seeds for an interval") for purpose in purposes)
    lay_sweep(folder / "more", CASES["radii"][0], seeds=(0, 7, 9, 8))
    for purpose, command in make_report([folder / "more" / "s"]).next_commands:
        assert purpose.endswith(" on all training images")
        assert " seed=0,7,8,9 " in command


def test_further_runs_of_a_sweep_are_trained_in_its_folder(folder, monkeypatch, capsys):
    lay_sweep(folder, CASES["radii"][0])
    record = make_report([folder / "s"]).first_record(1)
    assert same_sweep(record) == "sweep_name=s"  # a folder of runs
    (folder / "s" / "plan.json").write_text("{}")
    assert same_sweep(record) == f"hydra.sweep.dir={folder / 's'}"
    command = train_command(record, record.config, [5], same_sweep(record))
    (folder / "s" / "plan.json").unlink()
    runs = len(list((folder / "s").glob("*/result.json")))
    assert invoke(monkeypatch, capsys, folder, *shlex.split(command)[1:]).returncode == 0
    assert len(list((folder / "s").glob("*/result.json"))) == runs + 1
    assert not (folder / "outputs").exists()
