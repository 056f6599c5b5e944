"""docs/own_method.md: its two files add a method to the command line; what is wrong with one is said in a line."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sam_runner.config.hydra.compose import compose_experiment
from sam_runner.config.instantiate import locate
from sam_runner.reports.report import make_report
from sam_runner.reports.rerun import final_command
from sam_runner.training.builders.method import build_method
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, invoke, read_rows

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_method.md"
COMMAND = ("--config-dir", "mine", "optimizer=mine", "optimizer.last=0.2", "precision=fp32", *TINY, "run_dir=run")


def write_files(folder):
    """Write the files of the page, each of which names itself in its first line."""
    for block in re.findall(r"^```(?:python|yaml)\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        path = folder / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)


@pytest.fixture
def own(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_method")
    return tmp_path


def test_the_page_has_at_most_forty_lines():
    assert len(PAGE.read_text().splitlines()) <= 40


def test_the_files_of_the_page_train_a_run_that_continues(own, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, own, *COMMAND)
    assert done.returncode == 0, done.stderr
    rows = read_rows(own / "run")
    lengths = {row["step"]: row["train/eps_norm"] for row in rows if "test/accuracy" not in row}
    for step, length in lengths.items():  # rows of two steps each, of twelve
        radii = [0.05 * (1 - 0.8 * number / 12) for number in (step - 2, step - 1)]
        assert length == pytest.approx(sum(radii) / 2, rel=1e-5)
    assert len(lengths) == 4
    result = json.loads((own / "run" / "result.json").read_text())
    assert result["gradient_evaluations"] == 2 * result["step"]
    longer = invoke(monkeypatch, capsys, own, *COMMAND, "epochs=3")
    assert longer.returncode == 0, longer.stderr
    assert json.loads((own / "run" / "result.json").read_text())["step"] == 18


@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")  # /elsewhere/mine does not exist
def test_a_sweep_with_the_method_ends_with_its_report_and_names_commands_that_work(own, monkeypatch, capsys):
    words = [*COMMAND[:2], "optimizer=sgd,mine", "rho=0.05,0.1", *TINY, "max_steps=1", "data.val_fraction=0.1"]
    done = invoke(monkeypatch, capsys, own, "-m", *words, "sweep_name=own", "sweep.jobs=1")
    assert done.returncode == 0, done.stderr
    assert (own / "outputs" / "sweeps" / "own" / "report.html").is_file()
    report = make_report([own / "outputs"])
    assert set(report.table["optimizer"]) == {"sgd", "shrinking"}
    records = {record.config.optimizer.name: record for record in report.records}
    for name, option in (("sgd", "sgd"), ("shrinking", "mine")):
        record = replace(records[name], environment={"command": ["sam-train", "-m", *words], "folder": str(own)})
        command = final_command(record, [0], "own-final")
        trust = "SAM_RUNNER_TRUSTED=my_method " if option == "mine" else ""
        assert command.startswith(f"{trust}sam-train -m --config-dir mine optimizer={option} ")
        composed = compose_experiment(
            [word for word in shlex.split(command)[len(trust.split()) + 4 :] if "sweep_name" not in word],
            config_dir="mine",
        )
        assert (composed.optimizer.name, composed.data.val_fraction) == (name, 0)
    elsewhere = replace(record, environment=dict(record.environment, folder="/elsewhere"))  # without the folder mine
    assert f" config={record.folder} " in final_command(elsewhere, [0], "own-final")


@pytest.mark.parametrize(
    ("text", "new", "message"),
    [
        ("class Shrinking(Sam)", "class Shrinking(dict)", "makes a Shrinking"),
        ("last: float", "final: float", "unknown key optimizer.last"),
    ],
)
def test_a_method_that_cannot_be_built_is_refused_before_the_run(own, monkeypatch, capsys, text, new, message):
    path = own / "my_method.py"
    content = path.read_text().replace(text, new)
    if "dict" in new:
        content = content.replace("super().__init__()", "super().__init__(); self.x = 1")
    path.with_name("my_other_method.py").write_text(content)
    monkeypatch.setenv("SAM_RUNNER_TRUSTED", "my_other_method")
    option = own / "mine" / "optimizer" / "mine.yaml"
    option.write_text(option.read_text().replace("my_method", "my_other_method"))
    monkeypatch.delitem(__import__("sys").modules, "my_other_method", raising=False)
    done = invoke(monkeypatch, capsys, own, *COMMAND)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (own / "run").exists()


def test_a_common_perturbation_that_the_method_ignores_is_refused(own, monkeypatch):
    monkeypatch.chdir(own)
    config = compose_experiment(["optimizer=mine"], config_dir="mine")
    assert build_method(config, 10).name == "shrinking"
    common = replace(config, optimizer=replace(config.optimizer, sync_perturbation=True))
    with pytest.raises(InputError, match=r"sync_perturbation=true has no effect: my_method\.Shrinking does not use it"):
        build_method(common, 10)


def test_a_module_that_is_not_trusted_is_refused(own, monkeypatch):
    monkeypatch.delenv("SAM_RUNNER_TRUSTED")
    with pytest.raises(InputError, match="SAM_RUNNER_TRUSTED=my_method"):
        locate("my_method.Shrinking")
