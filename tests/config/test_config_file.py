"""config=FILE, a file of a user's settings, and resume=RUN, compared with the same words on the command line."""

import json
import re
import shlex

import pytest

from sam_runner.api import train
from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.compose import compose_settings, plain_settings
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of, invoke

FILE = """\
model: resnet20
optimizer: sam
optimizer/base: adamw
optimizer.ascent_steps: 2
lr: 1e-3
rho: 0.1
data:
  val_fraction: 0.1
"""
WORDS = (
    "model=resnet20", "optimizer=sam", "optimizer/base=adamw", "optimizer.ascent_steps=2", "lr=0.001", "rho=0.1",
    "data.val_fraction=0.1",
)  # fmt: skip


def config_of_file(path, *words):
    return load_experiment(plain_settings(compose_settings(words, config_file=str(path))), words)


@pytest.mark.parametrize("name", ["mine.yaml", "deep/er/mine.yml", "my file's, 1=2.yaml", "2026_11.yaml"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_says_the_same_as_its_words(name, absolute, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FILE)
    given = path if absolute else name
    assert config_of_file(given) == config_of(*WORDS)
    assert config_of_file(given, "lr=0.5", "model=wrn16_8") == config_of(*WORDS, "lr=0.5", "model=wrn16_8")
    monkeypatch.chdir(path.parent)
    assert config_of_file(path.name) == config_of(*WORDS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# @package _global_\ndefaults:\n  - override /model: resnet20\nlr: 0.5\n", ["model=resnet20", "lr=0.5"]),
        ("optimizer.base.momentum: 0.5\noptimizer:\n  base:\n    nesterov: false\n",
         ["optimizer.base.momentum=0.5", "optimizer.base.nesterov=false"]),
        ("optimizer:\n  m: 4\noptimizer.base.momentum: 0.5\n", ["optimizer.m=4", "optimizer.base.momentum=0.5"]),
        ("model._target_: torchvision.models.resnet18\n", ["model=own", "model._target_=torchvision.models.resnet18"]),
        ("optimizer.base:\n  _target_: torch.optim.Adagrad\n  eps: 0.1\n",
         ["optimizer/base=torch", "optimizer.base._target_=torch.optim.Adagrad", "++optimizer.base.eps=0.1"]),
    ],
)  # fmt: skip
def test_other_forms_of_a_file(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    assert config_of_file("mine.yaml") == config_of(*words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- lr\n", "write one line for each setting"), ("lr: 0.1\nlr: 0.2\n", "write each key once"),
        ("lrr: 0.1\n", "did you mean lr?"), ("model: resnet21\n", "there is no such option"),
        ("lr.x: 1\nlr: 2\n", "lr is set twice"), ("lr: 1\nlr.x: 2\n", "lr.x is set twice"),
        ("epochs: x\n", "wrong type"),
        ("model:\n  _target_: os.system\n", "is not in a trusted module"), ("hydra.mode: MULTIRUN\n", "-m is missing"),
        ("hydra.job.env_set:\n  SAM_RUNNER_TRUSTED: os\n", "hydra.job.env_set cannot be changed"),
        ("lr: &a 0.1\nrho: *a\n", "aliases are not accepted"),
        ("data: .nan\n", "data=nan is not an option of a group\n  choose one with data=NAME: cifar10, cifar100, "),
        ("schedule: no\n", "schedule=false is not an option of a group\n  choose one with schedule=NAME: constant, "),
        ("optimizer/base: 1.5\n", "choose one with optimizer/base=NAME: adamw, rmsprop, sgd, torch"),
        ("defaults:\n  - override /data: true\n", "choose one with data=NAME: cifar10, cifar100, "),
        ("data: null\n", "choose one with data=NAME: cifar10, cifar100, "),
        ("data: {_target_: null}\n", "data._target_ needs a value, not null"),
        ("optimizer: {name: null}\n", "optimizer.name=null is not known\n  accepted: sgd, none, sam, "),
        ("precision: null\n", "precision needs a value, not null\n  accepted: auto, fp64, "),
        ("channels_last: null\n", "channels_last needs a value, not null\n  accepted: true, false, auto"),
        ("logger: null\nepochs: null\n", "epochs needs a value, not null\n  accepted: a whole number, like 20"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_answered(text, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    done = invoke(monkeypatch, capsys, tmp_path, "config=mine.yaml", "dry_run=true")
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)
    assert message in done.stderr


def test_a_sweep_in_the_file_needs_m_and_then_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("optimizer: sam\nhydra.sweeper.params:\n  rho: 0.1,0.2\n")
    done = invoke(monkeypatch, capsys, tmp_path, "config=mine.yaml", *TINY, "epochs=1")
    assert done.returncode == 2
    hint = re.search(r"for the sweep: sam-train (.*)", done.stderr)[1]
    swept = invoke(monkeypatch, capsys, tmp_path, *shlex.split(hint))
    assert swept.returncode == 0, swept.stderr
    runs = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(runs) == 2


def test_the_printed_line_continues_an_unnamed_run(tmp_path, monkeypatch, capsys):
    words = (*TINY, "optimizer=sam", "rho=0.1", "precision=fp32")
    whole = invoke(monkeypatch, capsys, tmp_path, *words, "run_dir=whole", "epochs=4")
    assert whole.returncode == 0, whole.stderr
    first = invoke(monkeypatch, capsys, tmp_path, *words, "epochs=2", "schedule=constant")
    line = re.search(r"to continue it: sam-train (resume=\S+)\)", first.stdout)[1]
    longer = re.search(r"next: sam-train (resume=\S+ epochs=4)\n", first.stdout)[1].split()
    assert longer[0] == line
    again = invoke(monkeypatch, capsys, tmp_path, line)
    assert (again.returncode, "already finished" in again.stdout) == (0, True)
    done = invoke(monkeypatch, capsys, tmp_path, *longer)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / line.removeprefix("resume=")
    assert json.loads((folder / "result.json").read_text())["epoch"] == 4
    assert len(list((tmp_path / "outputs/runs").iterdir())) == 1


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, capsys):
    words = [*TINY, "optimizer=sam", "rho=0.1", "schedule=constant", "precision=fp32"]
    monkeypatch.chdir(tmp_path)
    whole = train([*words, "run_dir=whole", "epochs=3"])
    train([*words, "run_dir=part", "epochs=1"])
    part = train(["resume=part", "epochs=3"])
    assert part.folder.name == "part"
    assert part.final == whole.final
    assert list(part.metrics["train/loss"].dropna()) == list(whole.metrics["train/loss"].dropna())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=run", "rho=0.3"], "rho: 0.05 -> 0.3\n  to continue it, give the old settings\n  for a new run: "),
        (["config=run", "optimizer=sgd"], "optimizer=sgd chooses an option"),
        (
            ["optimizer=sgd", "resume=run", "data=digits", "epochs=2"],
            "leave out optimizer=sgd data=digits\n  sam-train resume=run epochs=2\n",
        ),
        (["resume=run/checkpoints/step-00000001.pt"], "it does not exist\n  did you mean run?"),
        (["resume=run/checkpoints"], "there is no config.yaml in it\n  did you mean run?"),
        (["resume=."], "there is no config.yaml in it\n  did you mean run, the latest of its runs?"),
        (["resume=run", "run_dir=other"], "config=run run_dir=other"),
        (["-m", "resume=run", "seed=0,1"], "a sweep continues by its own command"),
        (["resume=run", "config=run"], "give one of config= and resume="),
        (["resume=nowhere"], "resume=nowhere is not a run folder: it does not exist"),
        (["config=nowhere"], "config=nowhere is neither a file nor a run folder"),
    ],
)
def test_what_cannot_be_resumed_is_named(words, message, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "optimizer=sam", "epochs=1", "run_dir=run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_an_option_without_sam_is_none_with_its_base(name):
    assert config_of(f"optimizer={name}") == config_of("optimizer=none", f"optimizer/base={name}")
    with pytest.raises(InputError, match="rho has no effect"):
        load_experiment(plain_settings(compose_settings([f"optimizer={name}", "rho=0.1"])), ["rho=0.1"])


@pytest.mark.parametrize("in_file", [True, False])
def test_a_file_may_refine_an_experiment(in_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = "experiment=label_noise"
    text = "model: resnet20\nepochs: 3\n"
    (tmp_path / "mine.yaml").write_text("experiment: label_noise\n" + text if in_file else text)
    expected = config_of(chosen, "model=resnet20", "epochs=3")
    assert config_of_file("mine.yaml", *([] if in_file else [chosen])) == expected
