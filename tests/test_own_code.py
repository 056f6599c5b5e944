"""A user's own code from the command line: what is trusted, what it gets, and how its mistakes are answered."""

import json
import sys

import pytest
import torch

from sam_runner.commands import evaluate
from sam_runner.config.hydra.own_options import complete_own_options
from sam_runner.training.builders import data
from tests.helpers import invoke
from tests.test_own_pages import folder  # noqa: F401 - a fixture

MODELS = """\
from torch import nn


def tiny(num_classes, in_channels, image_size, *, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, width), nn.Linear(width, num_classes))


def few(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Volume(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.layer(images.flatten(1))[..., None]


class Crash(Volume):
    def forward(self, images):
        return self.layer(images)


def needs(num_classes, height):
    return None


class Renamed(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.layer = nn.Linear(64, n_classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


def fails(num_classes):
    raise KeyError("size")


def probable(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Softmax(1))


number = 3
"""
DATA = """\
import numpy as np
import torch
from sam_runner import from_dataset


class Items(torch.utils.data.Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.item(index)


def good(index):
    return torch.full((3,), float(index)), index % 2


def load(*, item="good"):
    return from_dataset(Items(globals()[item]), Items(good), ["a", "b"])


def shaken(index):
    return torch.rand(3), index % 2


def third_crashes(index):
    return good(index) if index != 3 else {}["x"]


def third_is_text(index):
    return good(index) if index != 3 else ("text", 0)


def third_is_single(index):
    return good(index) if index != 3 else good(index)[0]


def third_is_longer(index):
    return good(index) if index != 3 else (torch.zeros(4), 0)


def third_has_class_7(index):
    return good(index)[0], 7 if index == 3 else 0


def third_has_a_name(index):
    return good(index)[0], "cat" if index == 3 else 0


def nothing():
    return [1, 2]


def tokens():
    part = (np.zeros((20, 64), int), [0, 1] * 10)
    return from_dataset(part, part, 2)


def not_finite():
    return from_dataset((np.array([[1.0], [np.nan]]), [0, 1]), (np.zeros((2, 1)), [0, 1]), 2)
"""
OPTIM = (
    "import torch\n\n\nclass Broken(torch.optim.SGD):\n    def step(self, closure=None):\n        raise OSError('no')\n"
)
TINY = ("epochs=1", "max_steps=2", "device=cpu", "run_dir=run")


@pytest.fixture
def own(folder):  # noqa: F811
    (folder / "my_models.py").write_text(MODELS)
    (folder / "my_data.py").write_text(DATA)
    (folder / "my_optim.py").write_text(OPTIM)
    return folder


def test_a_typed_target_of_the_working_folder_trains_alone(own, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, own, "model._target_=my_models.tiny", "model.width=5", *TINY)
    assert done.returncode == 0, done.stderr
    saved = torch.load(next((own / "run/checkpoints").glob("*.pt")), weights_only=True)
    shapes = [tuple(value.shape) for value in saved["model"].values() if value.ndim == 2]
    assert shapes == [(5, 64), (10, 5)]
    assert "SAM_RUNNER_TRUSTED=my_models sam-eval run" in done.stdout
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "")
    refused = invoke(monkeypatch, capsys, own, "run", entry=evaluate.main)
    assert refused.returncode == 2
    assert "SAM_RUNNER_TRUSTED=my_models sam-train run" in refused.stderr  # invoke calls every command sam-train


def test_a_target_in_a_file_needs_the_variable_that_the_message_names(own, monkeypatch, capsys):
    (own / "mine.yaml").write_text("model:\n  _target_: my_models.tiny\n  width: 3\nmax_steps: 2\n")
    done = invoke(monkeypatch, capsys, own, "config=mine.yaml", "run_dir=run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        ": SAM_RUNNER_TRUSTED=my_models sam-train config=mine.yaml run_dir=run"
    )
    assert "my_models" not in sys.modules
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_models")
    assert invoke(monkeypatch, capsys, own, "config=mine.yaml", "run_dir=run").returncode == 0


@pytest.mark.parametrize("name", ["os", "json", "torch", "yaml", "nowhere"])
def test_a_file_of_the_working_folder_does_not_make_another_module_trusted(name, own, monkeypatch, capsys):
    if name != "nowhere":
        (own / f"{name}.py").write_text("open('ran', 'w')\n")
    done = invoke(monkeypatch, capsys, own, f"model._target_={name}.load", *TINY)
    assert (done.returncode, "is not in a trusted module" in done.stderr) == (2, True)
    assert not (own / "ran").exists()


def test_a_module_elsewhere_is_answered_with_the_command_that_finds_it(own, monkeypatch, capsys):
    word = "model._target_=nowhere.load"
    untrusted = invoke(monkeypatch, capsys, own, word).stderr
    assert untrusted.endswith(f": PYTHONPATH=FOLDER_OF_IT SAM_RUNNER_TRUSTED=nowhere sam-train {word}\n")
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "nowhere")
    absent = invoke(monkeypatch, capsys, own, word).stderr
    assert absent.endswith("  if it is in another folder, put PYTHONPATH=FOLDER before the command\n")


@pytest.mark.parametrize(("name", "is_warned"), [("probable", True), ("tiny", False)])
def test_a_network_that_returns_probabilities_is_warned_of(name, is_warned, own, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, own, f"model._target_=my_models.{name}", *TINY)
    assert (done.returncode, "are probabilities: they sum to 1" in done.stdout + done.stderr) == (0, is_warned)


@pytest.mark.parametrize(
    ("words", "message", "place"),
    [
        (["model._target_=my_models.tinny"], "did you mean tiny?", ""),
        (["model._target_=my_models"], "name a function or class of it: _target_=my_models.NAME", ""),
        (["model._target_=my_models.number"], "my_models.number is a int", ""),
        (["model._target_=my_models.tiny", "model.wdth=3"], "did you mean model.width?", ""),
        (["model._target_=my_models.few"], "returns outputs of shape (2, 3) for 2 inputs", "my_models.py:8, in few"),
        (["model._target_=my_models.Volume"], "a tensor of shape (2, 10, 1)", "my_models.py:17, in forward"),
        (["model._target_=my_models.Crash"], "mat1 and mat2 shapes", "my_models.py:23, in forward"),
        (["model._target_=my_models.needs"], "missing a required argument: 'height'", "my_models.py:26, in needs"),
        (["model._target_=my_models.Renamed"], "num_classes? or give it: model.n_classes=10", "in Renamed"),
        (["model._target_=my_models.py"], "write it as a module: _target_=my_models.NAME; ", ""),
        (["model._target_=my_models.py:tiny"], "write it as a module: _target_=my_models.tiny\n", ""),
        (["model._target_=./my_models.tiny"], "write it as a module: model._target_=my_models.tiny\n", ""),
        (["model._target_=parts/nets.Net"], "write it as a module: model._target_=parts.nets.Net\n", ""),
        (["model._target_=parts/nets:Net"], "write it as a module: model._target_=parts.nets.Net\n", ""),
        (["model._target_=tiny"], "a function or class tiny of a file FILE.py is FILE.tiny", ""),
        (["model.target=my_models.tiny"], "did you mean model._target_?", ""),
        (["model=my_models"], "for code of your own: model._target_=my_models.NAME", ""),
        (["optimizer/base=my_models"], "for code of your own: optimizer.base._target_=my_models.NAME", ""),
        (["model._target_=parts/nets.py:Net"], "write it as a module: model._target_=parts.nets.Net", ""),
        (["model=parts/nets.py:Net"], "for code of your own: model._target_=parts.nets.Net", ""),
        (["model=my_models.tiny"], "for code of your own: model._target_=my_models.tiny", ""),
        (["model._target_=my_models._hidden"], "a name that begins with _ is never called", ""),
        (["model._target_=my_models.fails"], "KeyError: 'size'", "my_models.py:40, in fails"),
        (["model._target_=my_broken.tiny"], "importing my_broken fails: ModuleNotFoundError", "my_broken.py:2"),
        (["model._target_=my_typo.tiny"], "importing my_typo fails: SyntaxError", "my_typo.py:1"),
        (["data._target_=my_data.load", "data.item=third_crashes"], "item 3 cannot be read: KeyError", "my_data.py:30"),
        (["data._target_=my_data.load", "data.item=third_is_text"], "item 3 has an input of type str", "my_data.py:22"),
        (["data._target_=my_data.load", "data.item=third_is_single"], "item 3 is a Tensor", "my_data.py:22, in load"),
        (["data._target_=my_data.load", "data.item=third_is_longer"], "input of shape (4,)", "my_data.py:22, in load"),
        (["data._target_=my_data.load", "data.item=third_has_class_7"], "example 3 has label 7", "my_data.py:22"),
        (["data._target_=my_data.load", "data.item=third_has_a_name"], "item 3 has the label 'cat'", "my_data.py:22"),
        (["data._target_=my_data.nothing"], "returns a list", "from_dataset"),
        (["data._target_=my_data.not_finite"], "input 1 holds a value that is not finite", "my_data.py:63"),
        (["data._target_=my_data.tokens", "model._target_=my_models.Volume"], "not accept int64 inputs", "give floats"),
        (["data._target_=my_data.load"], "SmallCNN does not accept inputs of shape (3,)", "model._target_"),
        (["optimizer.base._target_=my_optim.Broken"], "cannot take a step with gradients alone: no", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_with_its_line(words, message, place, own, monkeypatch, capsys):
    (own / "my_broken.py").write_text("import json\nimport nowhere\n")
    (own / "my_typo.py").write_text("def tiny(:\n")
    (own / "parts").mkdir()
    (own / "parts" / "nets.py").write_text(MODELS)
    batch = ["batch_size=10"] if any("my_data" in word for word in words) else []
    done = invoke(monkeypatch, capsys, own, *words, *batch, *TINY)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr
    assert place in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    assert not (own / "run").exists()


def test_random_data_are_warned_of_and_later_refused_with_the_reason(own, monkeypatch, capsys):
    words = ("data._target_=my_data.load", "data.item=shaken", "model._target_=my_linear.tiny", "batch_size=10")
    (own / "my_linear.py").write_text("from torch import nn\n\n\ndef tiny(num_classes):\n    return nn.Linear(3, 2)\n")
    done = invoke(monkeypatch, capsys, own, *words, *TINY)
    assert done.returncode == 0, done.stderr
    assert "train: item 0 has another input when it is read again" in done.stderr + done.stdout
    data._read_data.cache_clear()
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_data,my_linear")
    done = invoke(monkeypatch, capsys, own, "run", entry=evaluate.main)
    assert done.returncode == 2 and "seed its splits and transformations" in done.stderr


def test_the_message_gives_the_command_that_trusts_a_module_elsewhere(own, monkeypatch, capsys):
    (own / "code").mkdir()
    (own / "code" / "other_nets.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(own / "code"))
    monkeypatch.setenv("PYTHONPATH", "code")
    done = invoke(monkeypatch, capsys, own, "model._target_=other_nets.tiny", *TINY)
    words = "model._target_=other_nets.tiny epochs=1 max_steps=2 device=cpu run_dir=run"
    assert f": PYTHONPATH=code SAM_RUNNER_TRUSTED=other_nets sam-train {words}\n" in done.stderr
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "other_nets")
    assert invoke(monkeypatch, capsys, own, *words.split()).returncode == 0


def test_words_of_own_options_are_completed():
    words = ["model._target_=a.b", "model.width=3", "data.val_fraction=0.1", "lr=0.1", "model.weights=w.pt"]
    assert complete_own_options(words) == [
        "model=own", "model._target_=a.b", "++model.width=3", "++data.val_fraction=0.1", "lr=0.1",
        "++model.weights=w.pt",
    ]  # fmt: skip
    assert complete_own_options(["model=mlp", "model._target_=a.b"]) == ["model=mlp", "model._target_=a.b"]


def test_held_out_data_of_a_file_without_the_keys(own, monkeypatch, capsys):
    (own / "mine" / "data").mkdir(parents=True)
    (own / "mine" / "data" / "waves.yaml").write_text("_target_: my_data.load\n")
    (own / "my_models.py").write_text(
        "from torch import nn\n\n\ndef line(num_classes, in_features):\n"
        "    return nn.Linear(in_features, num_classes)\n"
    )
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_data")
    words = ("--config-dir", "mine", "data=waves", "data.val_fraction=0.25", "batch_size=5", "optimizer=sam")
    done = invoke(monkeypatch, capsys, own, *words, "model._target_=my_models.line", "epochs=1", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert "data: 15 train, 20 test, 5 validation" in done.stdout


def test_a_warm_up_that_a_schedule_does_not_take_is_refused(own, monkeypatch, capsys):
    (own / "my_schedules.py").write_text("def flat(total_steps):\n    return lambda step: 1.0\n")
    words = ["schedule._target_=my_schedules.flat", *TINY]
    done = invoke(monkeypatch, capsys, own, *words, "schedule.warmup_epochs=0.1")
    assert done.returncode == 2
    assert "schedule.warmup_epochs=0.1 has no effect: my_schedules.flat has no argument warmup_steps" in done.stderr
    assert invoke(monkeypatch, capsys, own, *words).returncode == 0


def test_a_method_whose_name_differs_from_its_file_is_refused(own, monkeypatch, capsys):
    (own / "my_method.py").write_text(
        "from sam_runner.sam.methods import Sam\n\n\nclass Mine(Sam):\n    name = 'mine'\n"
    )
    done = invoke(monkeypatch, capsys, own, "optimizer._target_=my_method.Mine", "optimizer.name=other", *TINY)
    assert (done.returncode, "my_method.Mine is named mine" in done.stderr) == (2, True)
    done = invoke(monkeypatch, capsys, own, "optimizer._target_=my_method.Mine", *TINY)
    assert done.returncode == 0, done.stderr
    assert json.loads((own / "run/result.json").read_text())["gradient_evaluations"] == 4


def test_an_own_option_does_not_lose_to_one_of_the_same_name(own, monkeypatch, capsys):
    (own / "mine" / "data").mkdir(parents=True)
    (own / "mine" / "data" / "digits.yaml").write_text("_target_: my_data.load\n")
    for flags in ([], ["-m"]):
        done = invoke(monkeypatch, capsys, own, *flags, "--config-dir", "mine", "data=digits", "epochs=1")
        assert (done.returncode, "give your file another name" in done.stderr) == (2, True)


def test_a_function_without_arguments_takes_no_settings(own, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, own, "data._target_=my_data.nothing", "data.image_size=16", *TINY)
    assert (done.returncode, done.stderr) == (
        2,
        "error: unknown key data.image_size\n  my_data.nothing takes no settings\n",
    )


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["optimizer=glob(*)"], "optimizer=glob(*,exclude=own)"),
        (["optimizer/base=glob(*)"], "optimizer/base=glob(*,exclude=torch)"),
        (["optimizer=glob(own)"], "optimizer=glob(own)"),
        (["optimizer=glob(*,exclude=sgd)"], "optimizer=glob(*,exclude=sgd)"),
        (["optimizer=glob(*)", "optimizer._target_=mine.method"], "optimizer=glob(*)"),
        (["augment=glob(*)"], "augment=glob(*)"),
    ],
)
def test_a_pattern_leaves_out_the_option_that_needs_a_target(words, pattern):
    assert pattern in complete_own_options(words)


def test_a_sweep_over_all_methods_refuses_none(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, "-m", "optimizer=glob(*)", "dry_run=true", "device=cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "refused" not in done.stdout
