"""The commands that sam-train prints at its end: a shell reads them as they are meant."""

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest

from sam_runner.commands import next_step
from sam_runner.config.hydra.command_line import parse_command_line
from sam_runner.runs.environment import record_command
from tests.helpers import config_of

FOLDERS = ["outputs/runs/a", "with a space/run", "it's", "-dash", "$HOME/*", "näïve"]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_commands_after_a_run_name_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert len(next_step.after_run(Path(name), config_of())) == 3  # without logger=tensorboard there are no curves
    (Path(name) / "events.out.1").touch()
    evaluate, curves, again, longer = map(shlex.split, next_step.after_run(Path(name), config_of("epochs=3")))
    assert [evaluate[0], curves[:2], again[0]] == ["sam-eval", ["tensorboard", "--logdir"], "sam-train"]
    assert Path(evaluate[1]) == Path(curves[2]) == Path(name)
    assert not evaluate[1].startswith("-")
    line = parse_command_line(again[1:])
    assert (line.config_file, line.overrides) == (name, ["seed=1"])
    (Path(name) / "config.yaml").touch()
    line = parse_command_line(longer[1:])
    assert (line.config_file, line.overrides[0]) == (name, "epochs=6")
    assert next_step.after_run(Path(name), config_of("epochs=3", "max_steps=5"))[-1].endswith(" epochs=6 max_steps=10")


def test_the_commands_after_a_run_of_several_processes_start_as_many(tmp_path):
    commands = next_step.after_run(tmp_path, dataclasses.replace(config_of(), world_size=2))
    assert [words.split()[:5] for words in commands[1:]] == [
        ["torchrun", "--nproc-per-node", "2", "-m", "sam_runner"]
    ] * 2


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(("platform", "program"), [("linux", "xdg-open"), ("darwin", "open")])
def test_the_report_is_opened_by_the_program_of_the_system(name, platform, program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (Path(name) / "job").mkdir(parents=True)
    (Path(name) / "job" / "events.out.1").touch()
    monkeypatch.setattr(next_step.sys, "platform", platform)
    monkeypatch.setattr(shutil, "which", lambda asked: asked)
    page, curves = map(shlex.split, next_step.after_sweep(Path(name), 0, is_named=True))
    assert (page[0], Path(page[1])) == (program, Path(name) / "report.html")
    assert curves[0] == "tensorboard"
    monkeypatch.setattr(shutil, "which", lambda _: None)  # no desktop: the line "report: ..." names the page
    assert len(next_step.after_sweep(Path(name), 0, is_named=True)) == 1


def test_a_sweep_that_is_not_complete_is_continued_by_the_printed_command(monkeypatch):
    typed = ["-m", "--config-dir", "my files", "rho=choice(0.1,0.2)", "seed=0,1"]
    monkeypatch.setenv("SAM_RUNNER_COMMAND", "")
    record_command(["/usr/bin/sam-train", *typed])
    again, status = next_step.after_sweep(Path("outputs/sweeps/2026 x"), 1, is_named=False)
    assert shlex.split(again) == ["sam-train", *typed, "sweep_name=2026 x"]
    assert shlex.split(status) == ["sam-status", "outputs/sweeps/2026 x"]
    assert shlex.split(next_step.after_sweep(Path("x"), 75, is_named=True)[0]) == ["sam-train", *typed]
    refused = next_step.after_sweep(Path("x"), 1, is_named=True, can_repeat=False)  # it would be refused again
    assert refused == ["sam-status x"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (
        next_step.after_sweep(Path("x"), 1, is_named=False)[0]
        == "the same command with sweep_name=x runs what is missing"
    )
