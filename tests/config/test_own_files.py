"""Files of one's own, names that look like numbers, and config.yaml of a run: each hint is typed, and works."""

import re
import shlex
import sys
import textwrap

import pytest
from hydra.core.global_hydra import GlobalHydra

from sam_runner.commands import train
from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.compose import compose_settings, plain_settings
from sam_runner.config.hydra.text_values import quote_text_values
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of, invoke, train_tiny, write_experiment

HEAD = "# @package _global_\n"


def settings_of_experiment(folder, *words, name="own"):
    """The settings by dotted name that the file gives."""
    composed = compose_settings([f"experiment={name}", *words], config_dir=str(folder / "mine"))
    return load_experiment(plain_settings(composed)).flat()


def hinted_file(message):
    """The lines below "in a file:" or "write below defaults:", as a file."""
    lines = message.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() in ("in a file:", "write below defaults:"))
    head = "defaults:\n" if "defaults" in lines[start] else ""
    return HEAD + head + textwrap.dedent("\n".join(lines[start + 1 :])) + "\n"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (HEAD + "model: resnet20\n", "model.depth", 20),
        (HEAD + "optimizer:\n  base: adamw\n", "optimizer.base._target_", "torch.optim.AdamW"),
        (HEAD + "defaults:\n  - /optimizer: sam\n", "optimizer.rho", 0.05),
        (HEAD + "defaults:\n  - override optimizer: sam\n", "optimizer.rho", 0.05),
        (HEAD + "defaults:\n  - override optimizer/base: adamw\n", "optimizer.base._target_", "torch.optim.AdamW"),
        (HEAD + "defaults:\n  - model: resnet20\n", "model.depth", 20),
        (HEAD + "defaults:\n  - override augment: basic\nlr: 0.1\n", "augment.flip", True),
        (HEAD + "val_fraction: 0.1\n", "data.val_fraction", 0.1),
        (HEAD + "momentum: 0.5\n", "optimizer.base.momentum", 0.5),
        (HEAD + "optimizer:\n  lr: 0.1\n", "lr", 0.1),
        (HEAD + "data:\n  batch_size: 7\n", "batch_size", 7),
    ],
)
def test_the_lines_of_a_hint_work_when_they_are_typed(text, key, value, tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, text)
    done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", "mine", "experiment=own", "dry_run=true")
    assert done.returncode == 2
    write_experiment(tmp_path, hinted_file(done.stderr))
    assert settings_of_experiment(tmp_path)[key] == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rho: 0.1\n", "the first line of the file has to be: # @package _global_"),
        ("# @package global\nrho: 0.1\n", "the first line of the file has to be: # @package _global_"),
        ("rho: 0.1\n# @package _global_\n", "the first line of the file has to be: # @package _global_"),
        ("@package _global_\nrho: 0.1\n", "is a comment: # @package _global_"),
        (HEAD + "rhoo: 0.1\n", "did you mean rho?"),
        (HEAD + "optimizer.rho: 0.1\n", "optimizer:\n    rho: 0.1\n"),
        (HEAD + "optimizer:\nrho: 0.1\n", "indent the settings of optimizer below it"),
        (HEAD + "optimizer:\n\tp: 2\n", "indent with spaces"),
        (HEAD + "lr: 0.1\n  epochs: 3\n", "the same indentation"),
        (HEAD + "lr: 0.1\nlr: 0.2\n", "write each key once"),
        (HEAD + "lr:0.1\n", "lr: 0.1\n"),
        (HEAD + "lr = 0.1\n", "lr: 0.1\n"),
        (HEAD + "lr: '0.1'\n", "without quotes: lr: 0.1"),
        (HEAD + "lr: 0.1, 0.2\n", "sam-train -m lr=0.1,0.2"),
        (HEAD + "run_dir: 2026_11_25\n", "in quotes: run_dir: '...'"),
        (HEAD + "defaults:\n  - override /modle: resnet20\n", "did you mean model?"),
        (HEAD + "defaults:\n  - /modle: resnet20\n", "did you mean model?"),
        (HEAD + "defaults:\n  - override /model: wrn16\n", "did you mean model=wrn16_8?"),
        (HEAD + "defaults:\n  - resnet20\n", "- override /model: resnet20"),
        (HEAD + "defaults:\n  - override /model\n", "- override /model: NAME"),
        (HEAD + "defaults:\n  override /model: resnet20\n", "with a dash: - override /model: NAME"),
        (HEAD + "- override /model: resnet20\n", "below the line defaults:"),
        (HEAD + "lr: ${model}\n", "lr={...} has the wrong type"),
        (
            HEAD + "model: resnet20\n",
            "the line model: resnet20 does not choose an option of the group model\n"
            "  on the command line: model=resnet20",
        ),
        (HEAD + "logger: 5\n", "logger=5 has the wrong type\n  accepted: a list, like logger=[tensorboard,csv]"),
        (HEAD + "run_dir: ${lr\n", "${"),
        (HEAD + "hydra:\n  mode: MULTIRUN\n", "sam-train -m experiment=own dry_run=true"),
        (
            HEAD + "defaults:\n  - override /hydra/launcher: submitit_local\n",
            "sam-train -m experiment=own dry_run=true",
        ),
        (HEAD + "hydra:\n  sweeper:\n    params: {rho: '0.1,0.2'}\n", "sam-train -m experiment=own dry_run=true"),
        (HEAD + "defaults:\n  - /search: rho\n", "on the command line: search=NAME"),
        (HEAD + "defaults:\n  - override /search: rho\n", "on the command line: search=NAME"),
    ],
)
def test_a_mistake_in_a_file_is_answered_by_what_to_write(text, words, tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, text)
    done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", "mine", "experiment=own", "dry_run=true")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert 2 <= len(done.stderr.splitlines()) <= 18


def test_infinity_may_be_written_as_on_the_command_line(tmp_path):
    write_experiment(tmp_path, HEAD + "defaults:\n  - override /optimizer: sam\noptimizer:\n  p: inf\n")
    assert settings_of_experiment(tmp_path)["optimizer.p"] == float("inf")


OWN_METHOD = """defaults:
  - /hydra/settings/optimizer/own@_here_
  - /hydra/settings/rho/sam@_global_
  - base: sgd
  - _self_
_target_: my.Method
name: own
rho: ${rho}
alpha: 1
"""


def test_the_keys_of_an_own_option_are_known_where_one_is_misspelt(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "first.yaml").write_text(OWN_METHOD)
    (tmp_path / "mine" / "optimizer" / "second.yaml").write_text("defaults:\n  - first\nbeta: 2\n")
    for option, wrong, right in (
        ("first", "alhpa", "alpha"),
        ("second", "alhpa", "alpha"),
        ("second", "betta", "beta"),
    ):
        words = ["--config-dir", "mine", f"optimizer={option}", f"optimizer.{wrong}=3"]
        done = invoke(monkeypatch, capsys, tmp_path, *words)
        assert (done.returncode, f"did you mean optimizer.{right}?" in done.stderr) == (2, True), done.stderr


def test_a_key_of_one_swept_option_is_answered_by_a_command_for_each(tmp_path, monkeypatch, capsys):
    words = ["-m", "optimizer=sgd,asam", "optimizer.eta=0.1", "dry_run=true", "seed=0,1", *TINY]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 2
    commands = [shlex.split(line) for line in done.stderr.splitlines() if line.startswith("  sam-train")]
    plans = []
    for command in commands:
        typed = [word.replace("NAME", "both") for word in command[1:]]
        done = invoke(monkeypatch, capsys, tmp_path, *typed)
        assert done.returncode == 0, done.stderr
        plans += [done.stdout.count("asam with rho 0.5"), done.stdout.count("plan (dry run")]
    assert plans == [1, 1, 0, 1]  # the jobs of a command differ in the seed alone


def test_a_text_may_be_made_of_another_setting(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "run_dir=${seed}")
    assert (done.returncode, "'run_dir=text-${...}'" in done.stderr) == (2, True)
    assert config_of("run_dir=text-${seed}", "seed=3").run_dir == "text-3"


RHO_OF_SAM = HEAD + "defaults:\n  - override /optimizer: sam\nrho: 0.02\n"


@pytest.mark.parametrize(
    ("method", "default"),
    [("asam", "0.5"), ("fisher_sam", "0.1"), ("friendly_sam", "0.2"), ("sam_on", "0.5"), ("momentum_sam", "0.3"),
     ("layerwise_sam", "0.01")],
)  # fmt: skip
def test_the_rho_of_a_file_is_refused_for_a_method_with_another_unit(method, default, tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, RHO_OF_SAM)
    words = ["--config-dir", "mine", "experiment=own", f"optimizer={method}", "dry_run=true", *TINY]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    message = f"error: a file sets rho=0.02, which may not suit optimizer={method}: its default is {default}\n"
    assert (done.returncode, done.stderr.startswith(message)) == (2, True), done.stderr
    for typed in re.findall(r"rho=[\d.]+", done.stderr.partition("give the value: ")[2]):
        done = invoke(monkeypatch, capsys, tmp_path, *words, typed)
        assert f"{method} with rho {typed.removeprefix('rho=')}, " in done.stdout


def test_the_rho_of_a_file_is_refused_around_a_method_with_another_unit(tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, RHO_OF_SAM)
    words = ["--config-dir", "mine", "experiment=own", "optimizer=gsam", "optimizer/around=asam", "dry_run=true"]
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert (done.returncode, "suit optimizer/around=asam: its default is 0.5" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "words", "rho"),
    [
        (RHO_OF_SAM, [], 0.02),
        (RHO_OF_SAM, ["optimizer=sam"], 0.02),
        (RHO_OF_SAM, ["optimizer=gsam"], 0.02),
        (HEAD + "lr: 0.1\n", ["optimizer=gsam", "optimizer/around=asam"], 0.5),
        (RHO_OF_SAM, ["optimizer=asam", "rho=0.02"], 0.02),
        (RHO_OF_SAM.replace("0.02", "0.5"), ["optimizer=asam"], 0.5),
        (RHO_OF_SAM.replace(": sam", ": asam"), [], 0.02),
        (HEAD + "lr: 0.1\n", ["optimizer=asam"], 0.5),
    ],
)
def test_the_rho_of_a_file_holds_for_its_own_method_and_those_with_sams_unit(text, words, rho, tmp_path):
    write_experiment(tmp_path, text)
    composed = compose_settings(["experiment=own", *words], config_dir=str(tmp_path / "mine"))
    assert load_experiment(plain_settings(composed), ["experiment=own", *words]).optimizer.rho == rho


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sweep: {jobs: many}\n", "sweep.jobs=many has the wrong type"),
        ("sweep: {jobs: 0}\n", "sweep.jobs=0 is out of range"),
        ("sweep: {on_error: go}\n", "sweep.on_error=go is not known"),
        ("sweep_name: 2026_11_25\n", "in quotes: sweep_name: '...'"),
        ("dry_run: 3\n", "dry_run=3 has the wrong type"),
        ("hydra: {sweeper: {params: {sweep.jobs: '1,2'}}}\n", "sweep.jobs=1,2 gives several values"),
    ],
)
def test_settings_of_a_sweep_in_a_file_are_checked_before_it_begins(text, words, tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path, HEAD + text)
    sweep = ["-m", "--config-dir", "mine", "experiment=own", "seed=0,1"]
    GlobalHydra.instance().clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sam-train", *sweep])
    assert train.main() == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["2026_11_25", "1e3", "007", "true", "inf"])
def test_a_file_may_be_named_by_a_number(tmp_path, name):
    write_experiment(tmp_path, HEAD + "lr: 0.125\n", name)
    assert settings_of_experiment(tmp_path, name=name)["lr"] == 0.125


@pytest.mark.parametrize(
    "typed",
    [
        "2026_11_25", "1e3", "0123", "007", "1_000", "-5", "+1.50", "true", "Off", "inf", "nan", "[a]", "{a: 1}",
        "a=b", "it's", "a\\b", "ends in \\", "naïve 猫", "a b", "a:b", "(x)", "a'b\\'c", "int(3)", "~/x=1", "#5", "a;b",
    ],
)  # fmt: skip
def test_text_settings_stay_as_they_are_typed(typed):
    assert config_of(f"run_dir={typed}").run_dir == typed
    assert config_of("data=cifar10", f"++data.root={typed}").data.root == typed


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("run_dir=null", "run_dir=null"),
        ("run_dir='2026_11'", "run_dir='2026_11'"),
        ("run_dir=${oc.env:HOME}", "run_dir=${oc.env:HOME}"),
        ("run_dir=plain/folder-1", "run_dir=plain/folder-1"),
        ("lr=1e3", "lr=1e3"),
        ("seed=0123", "seed=0123"),
        ("~run_dir", "~run_dir"),
        ("model=resnet20", "model=resnet20"),
        ("experiment=[label_noise,norms]", "experiment=[label_noise,norms]"),
        ("data.root=a,b", "data.root=a,b"),
        ("data.root=1_0,b,02", "data.root='1_0',b,02"),
        ("data.root=choice(a,b)", "data.root=choice(a,b)"),
        ("model=glob(resnet*)", "model=glob(resnet*)"),
    ],
)
def test_only_what_hydra_would_misread_is_quoted(word, result):
    assert quote_text_values([word], is_sweep=True) == [result]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("noise=[1,2]", "noise=[1,2] is not an option"), ("noise={a:1}", "noise={a:1} is not an option"),
        ("data=[cifar10,digits]", "choose one with data=NAME: cifar10, "), ("optimizer/base=[1]", "optimizer.base=[1]"),
        ("optimizer.base=[1]", "choose one with optimizer/base=NAME"), ("lr=${data}", "lr={...} has the wrong type"),
        ("lr=${data.nothere}", "lr cannot be resolved"), ("epochs=${rho}", "epochs=0.05 has the wrong type"),
        ("seed=${oc.env:HOME}", "accepted: a whole number"), ("augment.mixup=${model.width}x", "wrong type"),
        ("compile=null", "accepted: off, default, "), ("checkpoint=true", "checkpoint is a group of settings"),
        ("checkpoint=3", "checkpoint=3 is not accepted"), ("data.val_fraction=${batch_size}", "out of range"),
    ],
)  # fmt: skip
def test_values_and_interpolations_of_the_wrong_type_are_named(word, words, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, word, "dry_run=true")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_in_the_defaults_of_a_file_is_a_name(tmp_path, monkeypatch, capsys):
    text = "# @package _global_\ndefaults:\n  - override /data: .nan\n"
    write_experiment(tmp_path, text)
    done = invoke(monkeypatch, capsys, tmp_path, "--config-dir", "mine", "experiment=own")
    assert done.returncode == 2
    assert "the option of a group in a configuration file is no name but a float" in done.stderr
    assert "- override /GROUP: NAME" in done.stderr


def test_a_runs_config_file_runs_again(tmp_path, monkeypatch, capsys):
    first = train_tiny(tmp_path / "first", "optimizer=sam", "rho=0.1", "epochs=1")
    for number, file in enumerate([first / "config.yaml", first]):
        done = invoke(monkeypatch, capsys, tmp_path, f"config={file}", f"run_dir=again{number}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"again{number}/metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
    done = invoke(monkeypatch, capsys, tmp_path, f"config={first}", "rho=0.2", "optimizer.base.lr=0.3", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "rho: 0.2" in done.stdout
    done = invoke(monkeypatch, capsys, tmp_path, f"config={first}", "model=resnet20")
    assert (done.returncode, "leave config= out" in done.stderr) == (2, True)


def test_settings_of_a_file_follow_their_aliases(tmp_path):
    first = train_tiny(tmp_path / "first", "optimizer=sam", "optimizer.rho=0.1", "lr=0.02", "epochs=1")
    saved = {"config_file": str(first)}
    config = load_experiment(plain_settings(compose_settings(["rho=0.3"], **saved)), ["rho=0.3"])
    assert (config.optimizer.rho, config.optimizer.base.lr) == (0.3, 0.02)
    config = load_experiment(plain_settings(compose_settings(["optimizer.base.lr=0.5"], **saved)))
    assert (config.optimizer.rho, config.optimizer.base.lr, config.run_dir) == (0.1, 0.5, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "is not a configuration"), ("lr: x\n", "lr=x has the wrong type"), ("lrr: 1\n", "did you mean lr?")],
)
def test_a_config_file_that_cannot_be_used_is_named(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        compose_settings([], config_file=str(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer=sam", "optimizer.sync_perturbation=true"], "optimizer.sync_perturbation has no effect with one"),
        (["optimizer=sam", "optimizer.sync_perturbation=false"], "optimizer.sync_perturbation has no effect with one"),
        (["rank_timeout=60"], "rank_timeout has no effect with one process"),
        (["deterministic=true", "device=cpu"], "deterministic=true has no effect on a CPU"),
    ],
)
def test_settings_without_effect_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        config_of(*words)


def test_the_same_settings_are_accepted_where_they_have_an_effect(monkeypatch):
    config_of("deterministic=true", "device=cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert config_of("rank_timeout=60", "optimizer=sam", "optimizer.sync_perturbation=true").world_size == 2


@pytest.mark.parametrize(
    "word", ["hydra/launcher=submitit_local", "hydra.sweep.dir=x", "hydra.sweeper.params.rho='1,2'"]
)
def test_settings_of_a_sweep_without_m_are_refused(word, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, word, *TINY)
    assert (done.returncode, "has no effect without -m" in done.stderr) == (2, True)
