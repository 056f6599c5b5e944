"""Whole runs of the tiny problem: their files, metrics, repetition and continuation."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.runs.logging.tensorboard import tensorboard_tag
from sam_runner.sam.optimizer_step import OptimizerStep
from sam_runner.training import loop
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.metrics import SUMS
from sam_runner.training.state import Progress
from sam_runner.utils.errors import InputError, TrainingError
from tests.helpers import invoke, read_rows, train_tiny

MEASURED = ("training_seconds", "peak_memory_bytes")
DROPOUT = ("model.dropout=0.3", "augment.pad=1")


def read_result(folder):
    return json.loads((folder / "result.json").read_text())


def load_state(folder):
    found = CheckpointFolder(folder / "checkpoints").load_latest()
    assert found is not None
    return found


def equal_values(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal_values(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal_values, first, second))
    return first == second


def equal_states(first, second):
    a, b = load_state(first), load_state(second)
    for progress in (a["progress"], b["progress"]):
        for part in (progress, progress["before_end"].get("progress", {})):
            for measured in MEASURED:
                part.pop(measured, None)
    return equal_values(a, b)


def read_tensorboard_steps(folder):
    """Steps of each scalar without timings by tag, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [event.step for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def sam_run(tmp_path_factory):
    options = (
        "optimizer=sam",
        "rho=0.1",
        "noise=symmetric",
        "noise.rate=0.5",
        "ema_decay=0.9",
        "data.val_fraction=0.25",
    )
    return train_tiny(tmp_path_factory.mktemp("runs") / "sam", *options, *DROPOUT)


def test_a_run_leaves_the_documented_files(sam_run):
    names = {path.name for path in sam_run.iterdir() if not path.name.startswith(("events", ".lock"))}
    assert names == {
        "config.yaml", "metrics.jsonl", "timing.jsonl", "checkpoints", "result.json", "status.json", "run.log",
        "environment.json", "model.json", "normalisation.json",
    }  # fmt: skip
    assert len(list(sam_run.glob("events*"))) == 1
    assert json.loads((sam_run / "status.json").read_text())["status"] == "finished"
    environment = json.loads((sam_run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["device"] == "cpu"


def test_the_result_has_the_documented_keys(sam_run):
    content = read_result(sam_run)
    assert content["status"] == "finished"
    assert (content["seed"], content["epoch"], content["step"]) == (0, 2, 8)
    assert content["selected_by"] == "validation/accuracy"
    for tag in (
        "train/loss",
        "train/memorised",
        "test/accuracy",
        "test/nll",
        "test_ema/accuracy",
        "validation/accuracy",
    ):
        assert tag in content["final"]
        assert tag in content["best"]
    assert 0 <= content["final"]["test/accuracy"] <= 1
    assert content["images_per_second"] > 0
    assert len(content["fingerprint"]) == 12
    validation = [row["validation/accuracy"] for row in read_rows(sam_run) if "validation/accuracy" in row]
    assert content["best"]["validation/accuracy"] == max(validation)
    assert content["best_epoch"] == 1 + validation.index(max(validation))


def test_metrics_rows_hold_both_losses(sam_run):
    for row in read_rows(sam_run):
        assert row["train/loss_gap"] == pytest.approx(row["train/loss_perturbed"] - row["train/loss"], abs=1e-12)
        assert row["train/loss_gap"] > 0
        assert row["train/eps_norm"] == pytest.approx(0.1, rel=1e-5)
        assert row["train/grad_norm"] > 0
        assert row["rho"] == 0.1
    assert [row["step"] for row in read_rows(sam_run)] == [2, 4, 6, 8]


def test_the_learning_rate_logged_is_the_cosine_of_the_step(sam_run):
    for row in read_rows(sam_run):
        assert row["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * (row["step"] - 1) / 8)) / 2, rel=1e-12)


def test_tensorboard_holds_the_same_numbers_and_the_pictures_in_one_run(sam_run):
    events = EventAccumulator(str(sam_run), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    for row in read_rows(sam_run):
        for tag, value in row.items():
            if tag not in ("step", "epoch"):
                logged = {event.step: event.value for event in events.Scalars(tensorboard_tag(tag))}
                assert logged[row["step"]] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert {"train/images", "test/confusion"} <= set(tags["images"])
    assert "time/images_per_second" in tags["scalars"]
    assert [event.step for event in events.Scalars("loss/train")] == [2, 4, 6, 8]
    plugin = events.summary_metadata
    assert any(name.startswith("_hparams_/") for name in plugin)
    assert not [path for path in sam_run.iterdir() if path.is_dir() and path.name != "checkpoints"]


def test_a_plain_run_reports_no_perturbed_loss(tmp_path):
    folder = train_tiny(tmp_path / "sgd")
    tags = set().union(*read_rows(folder))
    assert "train/loss" in tags
    assert tags.isdisjoint({"train/loss_perturbed", "train/loss_gap", "train/eps_norm", "train/memorised"})


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(tmp_path):
    options = ("optimizer=sam", "noise=symmetric", *DROPOUT)
    first, second = train_tiny(tmp_path / "a", *options), train_tiny(tmp_path / "b", *options)
    other = train_tiny(tmp_path / "c", *options, "seed=1")
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    assert equal_states(first, second)
    assert (first / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("options", [(), ("optimizer=sam", "ema_decay=0.9"), ("optimizer=sam", "precision=fp16")])
def test_a_run_that_died_in_its_second_epoch_continues_to_the_same_bytes(options, tmp_path, monkeypatch):
    whole = train_tiny(tmp_path / "whole", *options, *DROPOUT)
    original, calls = loop._train_step, []

    def dying(run, meter, examples, progress):
        calls.append(progress.step)
        if len(calls) == 10:
            raise RuntimeError("power cut")
        return original(run, meter, examples, progress)

    monkeypatch.setattr(loop, "_train_step", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train_tiny(tmp_path / "cut", *options, *DROPOUT)
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["status"] == "failed"
    monkeypatch.setattr(loop, "_train_step", original)
    cut = train_tiny(tmp_path / "cut", *options, *DROPOUT)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert equal_states(cut, whole)
    events = EventAccumulator(str(cut), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [2, 4, 6, 8, 10, 12]
    results = [read_result(folder) for folder in (cut, whole)]
    for result in results:
        for measured in ("images_per_second", *MEASURED):
            assert result.pop(measured) > 0
    assert results[0] == results[1]


def test_a_folder_of_a_run_with_other_settings_is_refused_with_the_differences(tmp_path):
    train_tiny(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"lr: 0\.05 -> 0\.2") as caught:
        train_tiny(tmp_path / "run", "lr=0.2", "seed=3")
    assert "seed: 0 -> 3" in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("options", [(), ("precision=bf16",), ("optimizer.m=4", "accumulate=8")])
def test_sam_with_rho_zero_is_sgd_to_the_bit_through_the_whole_program(options, tmp_path):
    plain_options = [option for option in options if not option.startswith("optimizer.m")]
    extra = [option for option in options if option.startswith("optimizer.m")]
    sam = train_tiny(tmp_path / "sam", "optimizer=sam", "rho=0", *plain_options, *extra, *DROPOUT)
    sgd = train_tiny(tmp_path / "sgd", "optimizer=sgd", *plain_options, *extra, *DROPOUT)
    assert equal_states(sam, sgd)


def test_max_steps_ends_within_an_epoch(tmp_path):
    folder = train_tiny(tmp_path / "run", "max_steps=3")
    assert read_result(folder)["step"] == 3
    assert read_rows(folder)[-1]["step"] == 3


@pytest.mark.parametrize("which", ["last", "best"])
def test_sam_eval_prints_what_the_run_reported(sam_run, which, tmp_path, monkeypatch, capsys):
    arguments = [sam_run, "--checkpoint", which]
    done = invoke(monkeypatch, capsys, tmp_path, *arguments, entry=evaluate_command.main)
    assert done.returncode == 0, done.stderr
    printed = {tag: float(value) for tag, value in map(str.split, done.stdout.splitlines())}
    reported = read_result(sam_run)["final" if which == "last" else "best"]
    for tag in ("test/accuracy", "test/nll", "test_ema/accuracy", "validation/accuracy", "test/calibration_error"):
        assert printed[tag] == pytest.approx(reported[tag], abs=1e-6)


def test_sam_eval_refuses_a_config_that_names_untrusted_code(tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run")
    config = folder / "config.yaml"
    marker = tmp_path / "ran"
    text = config.read_text().replace("sam_runner.models.small_cnn.SmallCNN", "os.system")
    config.write_text(text.replace("width: 4", f"command: touch {marker}"))
    done = invoke(monkeypatch, capsys, tmp_path, folder, entry=evaluate_command.main)
    assert done.returncode == 2
    assert "os.system" in done.stderr
    assert not marker.exists()


def test_skipped_steps_leave_the_schedule_where_it_was(tmp_path, monkeypatch):
    original, calls = OptimizerStep.__call__, []

    def overflow_at_three(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            self._optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))
        return original(self, *arguments)

    monkeypatch.setattr(OptimizerStep, "__call__", overflow_at_three)
    folder = train_tiny(tmp_path / "run", "optimizer=sam", "precision=fp16", "log_every=1")
    logged = {row["step"]: row["lr"] for row in read_rows(folder)}
    assert 3 not in logged  # a skipped step has no row
    for step, update in ((1, 0), (2, 1), (4, 2), (6, 4), (12, 10)):
        assert logged[step] == pytest.approx(0.05 * (1 + math.cos(math.pi * update / 12)) / 2, rel=1e-12)
    assert read_result(folder)["skipped_steps"] == 1


def test_rho_schedules_reach_the_step(tmp_path):
    options = ("optimizer=sam", "rho=0.2", "optimizer.rho_schedule=linear", "optimizer.rho_final=0.5", "log_every=1")
    logged = {row["step"]: row["rho"] for row in read_rows(train_tiny(tmp_path / "run", *options))}
    assert [logged[step] for step in (1, 7)] == pytest.approx([0.2, 0.15], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("precision=bf16", "epochs=8"), ("precision=fp16", "epochs=8"), ("compile=default", "epochs=8"), ()]
)
def test_every_precision_learns_the_digits(options, tmp_path, monkeypatch, capsys):
    arguments = ["optimizer=sam", "rho=0.05", "device=cpu", *options, "run_dir=run"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    assert read_result(tmp_path / "run")["final"]["test/accuracy"] >= 0.98


@pytest.mark.slow
def test_the_readmes_first_command_reaches_98_percent(tmp_path, monkeypatch, capsys):
    arguments = ["optimizer=sam", "rho=0.05", "run_dir=run"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    assert read_result(tmp_path / "run")["final"]["test/accuracy"] >= 0.98


def test_only_the_validation_set_decides_which_epoch_is_the_best():
    progress, found = Progress(), []
    for epoch, (validation, test) in enumerate([(0.5, 0.1), (0.4, 0.9), (0.5, 0.8), (0.6, 0.2)], 1):
        progress.epoch = epoch
        values = {"validation/accuracy": validation, "test/accuracy": test}
        found.append(loop._record_evaluation(progress, values, "validation/accuracy"))
    assert found == [True, False, False, True]
    assert (progress.best_epoch, progress.evaluated_epoch) == (4, 4)
    assert not loop._record_evaluation(progress, values | {"test/accuracy": 1.0}, "validation/accuracy")
    assert loop._record_evaluation(progress, {"test/accuracy": 0.0}, None)


def test_eval_every_leaves_evaluations_out(tmp_path):
    words = ["epochs=5", "data.val_fraction=0.25", "optimizer=sam"]
    every, some = train_tiny(tmp_path / "every", *words), train_tiny(tmp_path / "some", *words, "eval_every=2")
    ends = [
        {row["epoch"]: row for row in read_rows(folder) if row["step"] % 4 == 0 and "lr" in row}
        for folder in (every, some)
    ]
    assert [epoch for epoch, row in ends[1].items() if "test/accuracy" in row] == [2, 4, 5]
    assert [epoch for epoch, row in ends[1].items() if "validation/accuracy" in row] == [2, 4, 5]
    for epoch in (2, 4, 5):
        assert ends[0][epoch] == ends[1][epoch]  # an evaluation does not change the training
    best = json.loads((some / "result.json").read_text())
    accuracies = {epoch: ends[1][epoch]["validation/accuracy"] for epoch in (2, 4, 5)}
    assert best["best"]["validation/accuracy"] == max(accuracies.values())
    assert best["best_epoch"] == max(accuracies, key=accuracies.get)


@pytest.mark.parametrize(
    ("log_every", "when"), [(1, "is not finite at step 7"), (5, "within the last 5 steps, up to step 7")]
)
def test_a_fault_that_is_read_with_the_sums_names_its_steps(log_every, when):
    """On a GPU the finite check is read only with the sums of a row."""
    sums = {**dict.fromkeys(SUMS, 0.0), "nonfinite_grad": 1.0}
    run = SimpleNamespace(skip_nonfinite=False, log_every=log_every)
    progress = SimpleNamespace(step=7, window_sums={})
    with pytest.raises(TrainingError, match=f"^the gradient at w .*{when}"):
        loop._log_row(run, None, progress, SimpleNamespace(read_and_reset=lambda: sums), last=False)
