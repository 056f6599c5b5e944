"""The files and commands of the pages on a user's own things, typed one after the other in an empty folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from sam_runner import load_run
from sam_runner.commands import evaluate, train
from sam_runner.training.builders import data
from sam_runner.utils.errors import InputError
from tests.helpers import invoke

DOCS = Path(__file__).resolve().parent.parent / "docs"
ENTRIES = {"sam-train": train.main, "sam-eval": evaluate.main}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, in which modules are imported anew and nothing is trusted."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "")
    for name in [name for name in sys.modules if name.startswith("my_")]:
        monkeypatch.delitem(sys.modules, name)
    data._read_data.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]
    data._read_data.cache_clear()


def write_files(page, folder):
    """Write the blocks of a page whose first line is the name of a file."""
    for block in re.findall(r"^```(?:python|yaml)\n(# [\w./]+\.(?:py|yaml)\n.*?)^```", page, re.M | re.S):
        path = folder / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)


def list_commands(page):
    """The commands in the blocks of a page, each as (value of SAM_RUNNER_TRUSTED, words)."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.M | re.S)
    text = "".join(block for language, block in blocks if not language).replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line)
        trusted = words.pop(0).partition("=")[2] if words and words[0].startswith("SAM_RUNNER_TRUSTED=") else ""
        if words and words[0] in ENTRIES:
            yield trusted, words


@pytest.mark.parametrize(("name", "count"), [("own_model", 6), ("own_data", 5), ("extending", 2)])
def test_the_commands_of_a_page_work_in_an_empty_folder(name, count, folder, monkeypatch, capsys):
    page = (DOCS / f"{name}.md").read_text()
    write_files(page, folder)
    commands = list(list_commands(page))
    assert len(commands) == count
    for trusted, (command, *words) in commands:
        monkeypatch.setenv("SAM_RUNNER_TRUSTED", trusted)
        is_short = command != "sam-train" or any("epochs=" in word or "config=" in word for word in words)
        done = invoke(monkeypatch, capsys, folder, *words, *([] if is_short else ["epochs=1"]), entry=ENTRIES[command])
        assert done.returncode == 0, (words, done.stderr)
    results = sorted(folder.rglob("result.json"))
    assert len(results) >= sum(
        command == "sam-train" and "resume" not in " ".join(words) for _, (command, *words) in commands
    )


def test_a_run_without_trust_names_all_modules_and_new_inputs_are_predicted(folder, monkeypatch, capsys):
    page = (DOCS / "own_data.md").read_text()
    write_files(page, folder)
    words = ["data._target_=my_data.waves", "model._target_=my_models.convolutions", "batch_size=32", "epochs=1"]
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_data,my_models")
    assert invoke(monkeypatch, capsys, folder, *words, "run_dir=waves").returncode == 0
    scope = {}
    exec((folder / "predict_waves.py").read_text(), scope)
    torch.testing.assert_close(scope["probabilities"].sum(1), torch.ones(5))
    assert "SAM_RUNNER_TRUSTED=my_data,my_models python predict_waves.py" in page
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "")
    for script, command in (("sam-eval", "sam-eval waves"), ("predict_waves.py", "python predict_waves.py waves")):
        monkeypatch.setattr(sys, "argv", [script, "waves"])
        with pytest.raises(InputError) as caught:
            load_run(folder / "waves").model()
        expected = f"if my_data and my_models are your own code: SAM_RUNNER_TRUSTED=my_data,my_models {command}"
        assert str(caught.value).splitlines()[-1].strip() == expected


def test_the_noise_model_of_the_page_changes_dark_images(folder):
    write_files((DOCS / "own_data.md").read_text(), folder)
    scope = {}
    exec((folder / "my_noise.py").read_text(), scope)
    images = torch.tensor([50, 150]).byte().view(2, 1, 1, 1)
    assert scope["dark"].needs == "images"
    assert scope["dark"](torch.tensor([1, 1]), 2, 0, images).tolist() == [0, 1]
