"""scripts/studies/reproduce.py: the commands of a table's runs, the files they leave, and stopping."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.studies import reproduce as script
from tests.helpers import wait_for


def reproduce(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, script.__file__, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.fixture
def answer(monkeypatch, capsys):
    """The script's answer to arguments for which it trains nothing, from this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
        try:
            code = script.main()
        except SystemExit as stop:  # argparse
            code = stop.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


def print_commands(answer, *arguments):
    """The overrides of each command that --print shows, by key."""
    done = answer(*arguments, "--print")
    assert done.returncode == 0, done.stderr
    return [dict(word.partition("=")[::2] for word in shlex.split(line)) for line in done.stdout.splitlines()]


def test_a_table_in_full_has_the_settings_of_the_paper(answer, tmp_path):
    commands = print_commands(answer, "--table", 4, "--scale", "full", "data.root=x", "--out", tmp_path)
    jobs = [(words["noise.rate"], words["augment"], words["optimizer"], words.get("rho")) for words in commands]
    one_seed = [
        job
        for rate, rho in (("0.2", "0.1"), ("0.4", "0.1"), ("0.6", "0.1"), ("0.8", "0.05"))  # Table 4
        for job in ((rate, "basic", "sgd", None), (rate, "basic", "sam", rho), (rate, "mixup", "sgd", None))
    ]
    assert jobs == one_seed * 5
    assert [words["seed"] for words in commands[::12]] == ["0", "1", "2", "3", "4"]
    assert len({words["run_dir"] for words in commands}) == 60


def test_overrides_of_the_user_win(answer, tmp_path):
    (words,) = print_commands(
        answer, "--table", 5, "--scale", "cpu", "--rows", "cutout-sam", "--seeds", 1, "rho=0.3", "epochs=7",
        "--out", tmp_path,
    )  # fmt: skip
    assert (words["rho"], words["epochs"], words["augment"], words["data"]) == ("0.3", "7", "cutout", "fashion_mnist")
    assert words["paper"] == "table5.fashion_wrn28_10-cutout"


def test_each_set_of_table_3_has_a_folder(answer, tmp_path):
    words = ("--table", 3, "--scale", "full")
    commands = print_commands(answer, *words, "--seeds", 1, f"data.root={tmp_path}", "--out", tmp_path)
    names = ["aircraft", "flowers", "pets", "cars", "cifar10", "cifar100", "birdsnap", "food101"]
    assert [words["data.root"] for words in commands[::2]] == [f"{tmp_path}/{name}" for name in names]
    (tmp_path / "pets").mkdir()
    done = answer(*words, "--rows", "pets|cars", f"data.root={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: missing image folders: {tmp_path}/cars"
    assert "missing image folders: data.root (not given)" in answer(*words).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "9", "--scale", "full"], "--table table9 is not offered at --scale full; use table1"),
        (["--table", "4", "--scale", "gpu"], "error: missing image folders: data.root (not given)"),
        (["--table", "2", "--scale", "cpu"], "use table4, table4_bootstrap, table5, table1"),
        (["--table", "4", "--scale", "full", "nonsense"], "nonsense: further words are key=value"),
        (["--table", "4", "--scale", "full", "--jobs", "0"], "--jobs and --seeds are 1 or more"),
        (["--table", "4", "--scale", "full", "--rows", "("], "--rows ( is not a regular expression"),
        (["--table", "4", "--scale", "full", "--rows", "nosuch"], "--rows nosuch matches no run"),
    ],
)
def test_invalid_options_are_refused(arguments, message, answer):
    done = answer(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_plans_of_a_table_need_no_images_and_write_nothing(tmp_path):
    words = ("--table", 5, "--scale", "full", "--seeds", 1, "--rows", "fashion_wrn28_10-basic-s", "--out", tmp_path)
    done = reproduce(*words, "dry_run=true", "data.root=/nowhere", "model.widen_factor=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  steps      46,800 in all, 234 per epoch, 200 epochs\n") == 2
    assert done.stdout.count("  paper      Table 5") == 2
    assert done.stdout.endswith("2 runs, all planned\n")
    assert not list(tmp_path.iterdir())


def test_runs_save_at_the_end_of_the_time_and_the_same_command_continues(tmp_path):
    words = ["--table", "c4", "--scale", "smoke", "--jobs", "1", "epochs=4000", "--out", tmp_path]
    done = reproduce(*words, "--minutes", "0.4", "--rows", "c4-(sgd|true)", "max_steps=12000", timeout=120)
    assert done.returncode == 1
    assert "not finished: c4-" in done.stdout
    assert "the same command continues" in done.stdout
    folders = [folder for folder in (tmp_path / "smoke" / "c4").iterdir() if folder.is_dir()]
    (folder,) = folders  # the other job has not started
    assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    step = max(int(re.search(r"\d+", path.stem)[0]) for path in (folder / "checkpoints").glob("*.pt"))
    done = reproduce(*words, "--rows", folder.name, f"max_steps={step + 3}", timeout=120)
    assert done.returncode == 0, done.stdout
    assert f"after step {step}" in (folder / "run.log").read_text()


@pytest.mark.slow
def test_bootstrapping_trains_the_teacher_first_and_continues(tmp_path):
    words = ("--table", "table4_bootstrap", "--scale", "smoke", "--rows", "bootstrap20.*sam", "--out", tmp_path)
    done = reproduce(*words, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    teacher = tmp_path / "smoke" / "table4" / "table4-0.2-basic-sam-seed0"
    assert (teacher / "labels.npy").is_file()
    assert "table4.bootstrap20-relabelled-basic  sam        95.4" in done.stdout
    assert "1 runs, all finished" in done.stdout
    again = reproduce(*words, timeout=120)
    assert again.returncode == 0
    assert "1 runs, all finished" in again.stdout


@pytest.mark.slow
def test_a_stopped_script_saves_leaves_no_process_and_continues(tmp_path):
    words = ["--table", "c4", "--scale", "smoke", "--rows", "c4-sgd", "epochs=4000", "max_steps=12000", "--jobs", "1"]
    words += ["checkpoint.every_seconds=0.5", "--out", str(tmp_path)]
    process = subprocess.Popen([sys.executable, script.__file__, *words])
    folder = tmp_path / "smoke" / "c4" / "c4-sgd-sgd-seed0"
    wait_for(lambda: list((folder / "checkpoints").glob("*.pt")))
    worker = int((folder / ".lock").read_text().split()[1])
    process.terminate()
    process.wait(timeout=30)
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    step = max(int(re.search(r"\d+", path.stem)[0]) for path in (folder / "checkpoints").glob("*.pt"))
    words[words.index("max_steps=12000")] = f"max_steps={step + 3}"
    done = reproduce(*words, timeout=120)
    assert done.returncode == 0, done.stdout
    assert f"after step {step}" in (folder / "run.log").read_text()


@pytest.mark.slow
def test_a_failed_run_is_named_and_stops_no_other(tmp_path):
    words = ("--table", "fig3", "--scale", "smoke", "--rows", "fig3-(sgd|64)", "batch_size=32", "--out", tmp_path)
    done = reproduce(*words, timeout=120)
    assert done.returncode == 1
    assert "failed: fig3-64-sam-seed0" in done.stdout
    assert "fig3-sgd-sgd-seed0: train/accuracy" in done.stdout
