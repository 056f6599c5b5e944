"""A run that is stopped after any step and continued writes the same bits as an uninterrupted run."""

import json
import math
import os
import signal

import pytest
import torch

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.config.rules import files
from sam_runner.runs import start
from sam_runner.training import evaluation, loop
from sam_runner.training.builders import run as builder
from sam_runner.training.checkpoints import CheckpointFolder
from tests.helpers import TINY, invoke, train_tiny, write_image_folder
from tests.training.test_loop import equal_states, equal_values, load_state, read_tensorboard_steps

STEPS, PER_EPOCH = 12, 6  # of the tiny problem
COMMON = ("model.dropout=0.3", "augment.pad=1", "augment.flip=true", "log_every=2", "noise=symmetric", "noise.rate=0.5")
KINDS = {
    "sgd": ("optimizer=sgd",),
    "sam": ("optimizer=sam", "rho=0.1", "precision=fp32"),
    "sam in groups, averaged, held out": (
        "optimizer=sam", "optimizer.m=8", "accumulate=4", "ema_decay=0.9", "data.val_fraction=0.25", "precision=fp32",
        "epochs=3", "augment.policy=randaugment", "augment.mixup=0.5", "augment.erasing=0.5", "augment.cutout=3",
        "augment.cutout_per_batch=true",
    ),
    "sam fp16": ("optimizer=sam", "precision=fp16"),
    "sam bf16, schedules": (
        "optimizer=sam", "precision=bf16", "schedule.warmup_epochs=1", "optimizer.rho_schedule=linear",
        "optimizer.rho_final=0.5", "optimizer.rho_warmup_epochs=1",
    ),
    "sam, random direction": ("optimizer=sam", "rho=0.1", "optimizer.direction=random", "precision=fp32"),
    "adamw": ("optimizer=sam", "optimizer/base=adamw", "optimizer.ascent_steps=2", "grad_clip=1"),
}  # fmt: skip


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """Send a signal to this process in the last of `steps` training steps."""
    original, taken = loop._train_step, []

    def step(*arguments):
        original(*arguments)
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop, "_train_step", step)


def record_saves(monkeypatch):
    """Return a list that collects the steps at which checkpoints are written."""
    saved, original = [], CheckpointFolder.save

    def save(self, step, *rest, **more):
        saved.append(step)
        return original(self, step, *rest, **more)

    monkeypatch.setattr(CheckpointFolder, "save", save)
    return saved


def read_metrics(folder):
    return (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    found = {}

    def of(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp("references") / "run"
            found[kind] = train_tiny(folder, *KINDS[kind], *COMMON)
        return found[kind]

    return of


def test_the_reference_depends_on_what_is_restored(references):
    """Otherwise equal metrics would prove nothing."""
    assert read_metrics(references("sam")) != read_metrics(references("sgd"))
    assert len({read_metrics(references(kind)) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 6, 11)] + [3])
def test_a_run_stopped_after_any_step_continues_to_the_bit(kind, after, references, tmp_path, monkeypatch, capsys):
    arguments = [*KINDS[kind], *COMMON]
    with monkeypatch.context() as patch:
        stop_after(patch, after)
        stopped = invoke(patch, capsys, tmp_path, *arguments_of(arguments, tmp_path / "run"))
    assert stopped.returncode == 75
    assert f"SIGTERM: stopped after step {after}" in stopped.stdout
    assert load_state(tmp_path / "run")["step"] == after
    assert read_status(tmp_path / "run")["status"] == "preempted"
    resumed = invoke(monkeypatch, capsys, tmp_path, *arguments_of(arguments, tmp_path / "run"))
    assert resumed.returncode == 0, resumed.stderr
    assert f"after step {after}," in resumed.stdout
    reference = references(kind)
    assert read_metrics(tmp_path / "run") == read_metrics(reference)
    assert equal_states(tmp_path / "run", reference)
    assert read_tensorboard_steps(tmp_path / "run") == read_tensorboard_steps(reference)


def arguments_of(options, folder):
    return [*TINY, *options, f"run_dir={folder}"]


def read_status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.mark.slow
def test_stopped_after_every_single_step(references, tmp_path, monkeypatch, capsys):
    arguments = arguments_of([*KINDS["sam"], *COMMON], tmp_path / "run")
    for number in range(STEPS):
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            done = invoke(patch, capsys, tmp_path, *arguments)
        assert done.returncode == 75
        assert load_state(tmp_path / "run")["step"] == number + 1
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    assert read_metrics(tmp_path / "run") == read_metrics(references("sam"))
    assert equal_states(tmp_path / "run", references("sam"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_stopped_in_an_evaluation_evaluates_again(epoch, references, tmp_path, monkeypatch, capsys):
    original, calls = evaluation.predict, []

    def predict(*arguments):
        calls.append(1)
        if len(calls) == epoch:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments)

    arguments = arguments_of([*KINDS["sam"], *COMMON], tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "predict", predict)
        done = invoke(patch, capsys, tmp_path, *arguments)
    assert done.returncode == 75
    assert "SIGUSR1" in done.stdout
    saved = load_state(tmp_path / "run")["progress"]
    assert (saved["epoch"], saved["batch"], saved["step"]) == (epoch - 1, PER_EPOCH, PER_EPOCH * epoch)
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    assert read_metrics(tmp_path / "run") == read_metrics(references("sam"))
    assert equal_states(tmp_path / "run", references("sam"))


def test_checkpoints_within_an_epoch_are_used(references, tmp_path, monkeypatch, capsys):
    """After a crash, the steps since the last checkpoint are repeated."""
    original, taken = loop._train_step, []

    def crash_in_step_eight(*arguments):
        taken.append(1)
        if len(taken) == 8:
            raise RuntimeError("the power went")
        original(*arguments)

    arguments = arguments_of([*KINDS["sam"], *COMMON, "checkpoint.every_steps=1"], tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", crash_in_step_eight)
        assert invoke(patch, capsys, tmp_path, *arguments).returncode == 1
    assert load_state(tmp_path / "run")["step"] == 7
    done = invoke(monkeypatch, capsys, tmp_path, *arguments)
    assert "after step 7, in epoch 2" in done.stdout
    assert read_metrics(tmp_path / "run") == read_metrics(references("sam"))
    assert equal_states(tmp_path / "run", references("sam"))


def test_a_time_between_checkpoints_is_kept(tmp_path, monkeypatch, capsys):
    saved = record_saves(monkeypatch)
    arguments = arguments_of(["optimizer=sgd", "checkpoint.every_seconds=1e-9"], tmp_path / "run")
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    assert saved == list(range(1, STEPS + 1))


def test_the_end_of_an_epoch_within_min_interval_is_not_saved(tmp_path, monkeypatch, capsys):
    saved = record_saves(monkeypatch)
    options = ["optimizer=sgd", "epochs=5", "checkpoint.keep_epochs=[2]", "checkpoint.min_interval=1000"]
    assert invoke(monkeypatch, capsys, tmp_path, *arguments_of(options, tmp_path / "run")).returncode == 0
    assert saved == [2 * PER_EPOCH, 5 * PER_EPOCH]


def test_stopped_at_the_end_of_an_epoch_that_was_not_saved(references, tmp_path, monkeypatch, capsys):
    """The signal arrives while the line of the epoch is logged."""
    original, calls = loop._format_epoch, []

    def line(*arguments):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    arguments = arguments_of([*KINDS["sam"], *COMMON, "checkpoint.min_interval=1000"], tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_format_epoch", line)
        assert invoke(patch, capsys, tmp_path, *arguments).returncode == 75
    assert invoke(monkeypatch, capsys, tmp_path, *arguments).returncode == 0
    assert read_metrics(tmp_path / "run") == read_metrics(references("sam"))
    assert equal_states(tmp_path / "run", references("sam"))


def test_runs_with_images_on_disk_continue_to_the_bit(tmp_path, monkeypatch, capsys):
    root = write_image_folder(tmp_path / "images")
    options = ["data=image_folder", f"data.root={root}", "data.storage=disk", "data.image_size=8", "augment=inception"]
    options += ["batch_size=16", "epochs=2", "optimizer=sam", "device=cpu", "model.width=4", "log_every=1"]
    assert invoke(monkeypatch, capsys, tmp_path, *options, "run_dir=whole").returncode == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert invoke(patch, capsys, tmp_path, *options, "run_dir=run").returncode == 75
    assert invoke(monkeypatch, capsys, tmp_path, *options, "run_dir=run").returncode == 0
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "whole")
    assert equal_states(tmp_path / "run", tmp_path / "whole")


def test_two_interrupts_end_a_run_immediately_and_keep_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    original, taken = loop._train_step, []

    def interrupt_twice(*arguments):
        original(*arguments)
        taken.append(1)
        if len(taken) == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    arguments = arguments_of([*KINDS["sam"], *COMMON], tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", interrupt_twice)
        done = invoke(patch, capsys, tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (130, "interrupted immediately; the last checkpoint is intact\n")
    assert load_state(tmp_path / "run")["step"] == PER_EPOCH
    assert read_status(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.parametrize(("module", "name"), [(start, "build_run"), (files, "require_files")])
def test_an_interrupt_before_the_run_has_a_folder_says_that_nothing_was_written(
    module, name, tmp_path, monkeypatch, capsys
):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        done = invoke(patch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run"))
    assert (done.returncode, done.stderr) == (130, "interrupted before anything was written\n")
    assert not (tmp_path / "run").exists()


def test_one_interrupt_saves_and_exits_with_130(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 5, signal.SIGINT)
        done = invoke(patch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run"))
    assert done.returncode == 130
    assert load_state(tmp_path / "run")["step"] == 5
    assert f"to continue the run: sam-train resume={tmp_path / 'run'}" in done.stdout
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_ends_a_sweep_and_the_same_command_continues_it(tmp_path, monkeypatch, capsys):
    sweep = ["-m", *arguments_of(["optimizer=sam", "rho=0.1,0.2,0.3"], "x")[:-1], "sweep_name=s"]
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 2)
        done = invoke(patch, capsys, tmp_path, *sweep)
    assert done.returncode == 75
    assert "sweep_name=s" in done.stdout
    results = sorted((tmp_path / "outputs" / "sweeps" / "s").glob("*/result.json"))
    assert len(results) == 1
    done = invoke(monkeypatch, capsys, tmp_path, *sweep)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert f"after step {STEPS + 2 - STEPS}," in done.stdout
    assert len(list((tmp_path / "outputs" / "sweeps" / "s").glob("*/result.json"))) == 3


def test_a_signal_while_a_finished_job_is_saved_ends_the_sweep(tmp_path, monkeypatch, capsys):
    original = start.write_result

    def write_result(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    sweep = ["-m", *arguments_of(["optimizer=sam", "rho=0.1,0.2"], "x")[:-1], "sweep_name=s"]
    monkeypatch.setattr(start, "write_result", write_result)
    assert invoke(monkeypatch, capsys, tmp_path, *sweep).returncode == 75
    (folder,) = (path.parent for path in (tmp_path / "outputs" / "sweeps" / "s").glob("*/config.yaml"))
    assert read_status(folder)["status"] == "finished"
    assert invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam"], "single")).returncode == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("epochs=4", "the schedules of learning rate, rho and method follow"),
        pytest.param("compile=default", "bits", marks=pytest.mark.slow),
        ("on_nonfinite=skip", "stop -> skip"),
        ("eval_every=2", "1 -> 2: other epochs are evaluated"),
    ],
)
def test_accepted_changes_are_logged_and_the_run_continues(changed, message, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        invoke(patch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run"))
    torch._dynamo.reset()
    done = invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam", changed], tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert f"{changed.partition('=')[0]} changed" in done.stdout
    assert "after step 5, in epoch 1" in done.stdout


def test_a_method_follows_the_new_number_of_steps(tmp_path):
    """6 steps, of which 3 are SAM's, and then 6 more; of 12 steps the last 6 are SAM's."""
    options = ["optimizer=late", "optimizer.fraction=0.5", "schedule=constant"]
    folder = train_tiny(tmp_path / "run", *options, "epochs=1")
    assert json.loads((folder / "result.json").read_text())["gradient_evaluations"] == 6 + 3
    train_tiny(folder, *options)
    assert json.loads((folder / "result.json").read_text())["gradient_evaluations"] == 12 + 3 + 6


def test_a_finished_run_is_made_longer(tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run", "optimizer=sam", "schedule=constant")
    whole = train_tiny(tmp_path / "whole", "optimizer=sam", "schedule=constant", "epochs=4")
    done = invoke(
        monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam", "schedule=constant", "epochs=4"], folder)
    )
    assert done.returncode == 0, done.stderr
    assert "after step 12, in epoch 3" in done.stdout
    assert read_metrics(folder) == read_metrics(whole)
    assert equal_states(folder, whole)
    shorter = invoke(
        monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam", "schedule=constant", "epochs=3"], folder)
    )
    assert shorter.returncode == 2
    assert "has done 24 steps, and 18 are asked for\n  give epochs=4 or more" in shorter.stderr


def test_a_finished_run_that_is_stopped_while_it_is_made_longer_continues(tmp_path, monkeypatch, capsys):
    """Its old result.json must not make the same command say that the longer run has finished."""
    folder = train_tiny(tmp_path / "run", "optimizer=sam", "schedule=constant")
    whole = train_tiny(tmp_path / "whole", "optimizer=sam", "schedule=constant", "epochs=4")
    words = arguments_of(["optimizer=sam", "schedule=constant", "epochs=4"], folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert invoke(patch, capsys, tmp_path, *words).returncode == 75
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "after step 13, in epoch 3" in done.stdout
    assert read_metrics(folder) == read_metrics(whole)
    assert equal_states(folder, whole)


def test_eval_every_does_not_change_the_weights(references, tmp_path, monkeypatch, capsys):
    arguments = [*KINDS["sam"], *COMMON]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert invoke(patch, capsys, tmp_path, *arguments_of(arguments, "run")).returncode == 75
    assert invoke(monkeypatch, capsys, tmp_path, *arguments_of([*arguments, "eval_every=2"], "run")).returncode == 0
    assert equal_values(load_state(tmp_path / "run")["model"], load_state(references("sam"))["model"])
    rows = [
        [json.loads(row) for row in read_metrics(folder).splitlines()]
        for folder in (tmp_path / "run", references("sam"))
    ]
    mine, theirs = ([row["step"] for row in part if "test/accuracy" in row] for part in rows)
    assert (mine, theirs) == ([STEPS], [PER_EPOCH, STEPS])
    assert rows[0][-1] == rows[1][-1]


@pytest.mark.parametrize(
    ("after", "fewer"),
    [(None, "max_steps=8"), (None, "max_steps=11"), (9, "max_steps=8"), (9, "max_steps=2"), (9, "epochs=1")],
)
def test_fewer_steps_than_completed_are_refused_and_no_file_changes(after, fewer, tmp_path, monkeypatch, capsys):
    words = arguments_of(["optimizer=sam", "schedule=constant", "log_every=50"], "run")
    with monkeypatch.context() as patch:
        if after is not None:
            stop_after(patch, after)
        invoke(patch, capsys, tmp_path, *words)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = invoke(monkeypatch, capsys, tmp_path, *words, fewer)
    assert done.returncode == 2, done.stdout
    asked = PER_EPOCH if fewer == "epochs=1" else fewer.partition("=")[2]
    assert f"the run in run has done {after or STEPS} steps, and {asked} are asked for\n" in done.stderr
    needed = (
        f"epochs={math.ceil((after or STEPS) / PER_EPOCH)}" if fewer == "epochs=1" else f"max_steps={after or STEPS}"
    )
    assert f"  give {needed} or more; for a new run: another run_dir, or config=RUN\n" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    if after is not None:
        assert invoke(monkeypatch, capsys, tmp_path, *words).returncode == 0


@pytest.mark.parametrize(("after", "end"), [(9, 9), (9, 11), (None, STEPS)])
@pytest.mark.parametrize("every", [2, 50])
def test_a_shortened_run_equals_a_run_of_that_length(after, end, every, tmp_path, monkeypatch, capsys):
    words = ["optimizer=sam", "schedule=constant", f"log_every={every}"]
    with monkeypatch.context() as patch:
        if after is not None:
            stop_after(patch, after)
        invoke(patch, capsys, tmp_path, *arguments_of(words, "run"))
    done = invoke(monkeypatch, capsys, tmp_path, *arguments_of([*words, f"max_steps={end}"], "run"))
    assert done.returncode == 0, done.stderr
    whole = train_tiny(tmp_path / "whole", *words, f"max_steps={end}")
    assert read_metrics(tmp_path / "run") == read_metrics(whole)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == end


def test_a_network_whose_code_has_changed_is_one_message(tmp_path, monkeypatch, capsys):
    train_tiny(tmp_path / "run", "optimizer=sgd", "epochs=1")
    original = builder.build_model
    monkeypatch.setattr(builder, "build_model", lambda *words, **more: torch.nn.Sequential(original(*words, **more)))
    resumed = invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sgd"], "run"))
    evaluated = invoke(monkeypatch, capsys, tmp_path, "run", entry=evaluate_command.main)
    for done in (resumed, evaluated):
        first, second = done.stderr.splitlines()
        assert (done.returncode, first[:64]) == (2, "error: the checkpoint does not fit run/config.yaml or your code:")
        assert 'Missing key(s) in state_dict: "0.' in first and second.startswith("  use the config.yaml and the code")


@pytest.mark.parametrize("changed", ["rho=0.2", "seed=1", "batch_size=8", "precision=fp16", "lr=0.01"])
def test_changes_that_make_another_run_are_refused_by_name(changed, tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run", "optimizer=sam")
    done = invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam", changed], folder))
    assert done.returncode == 2
    assert changed.partition("=")[0] in done.stderr
    assert "->" in done.stderr


def test_another_number_of_threads_is_logged(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        invoke(patch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run"))
    path = tmp_path / "run" / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 64}))
    done = invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run"))
    assert done.returncode == 0
    assert "threads 64 -> 1" in done.stdout


@pytest.mark.parametrize("formats", [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_run_goes_on_where_precision_auto_chooses_another_format(formats, tmp_path, monkeypatch, capsys):
    """As on a GPU without bfloat16 after a CPU: the loss scaler of fp16 begins."""
    before, now = formats
    words = arguments_of(["optimizer=sam"], "run")
    with monkeypatch.context() as patch:
        patch.setattr(builder, "choose_precision", lambda _: (before, ""))
        stop_after(patch, 5)
        invoke(patch, capsys, tmp_path, *words)
    monkeypatch.setattr(builder, "choose_precision", lambda _: (now, ""))
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert f"resolved_precision {before} -> {now}" in done.stdout


def test_temporary_files_of_a_killed_run_are_deleted(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        invoke(patch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run"))
    for name in ("checkpoints/step-00000009.pt.tmp.77", "status.json.tmp.77"):
        (tmp_path / "run" / name).write_text("half")
    assert invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam"], tmp_path / "run")).returncode == 0
    assert not list((tmp_path / "run").rglob("*.tmp.*"))


def test_equal_values_sees_a_difference():
    assert not equal_values({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1e-30])})


def test_a_run_shortened_to_an_epoch_without_evaluation_is_evaluated(tmp_path, monkeypatch, capsys):
    words = ["optimizer=sam", "schedule=constant", "eval_every=5"]
    with monkeypatch.context() as patched:
        stop_after(patched, 20)
        assert invoke(patched, capsys, tmp_path, *arguments_of([*words, "epochs=10"], "run")).returncode == 75
    for path in (tmp_path / "run" / "checkpoints").glob("*20*"):  # in epoch 4; the end of epoch 3 is left
        path.unlink()
    done = invoke(monkeypatch, capsys, tmp_path, *arguments_of([*words, "epochs=3"], "run"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    whole = json.loads((train_tiny(tmp_path / "whole", *words, "epochs=3") / "result.json").read_text())
    assert (result["epoch"], result["best_epoch"]) == (3, 3)
    assert result["final"]["test/accuracy"] == whole["final"]["test/accuracy"]
    assert result["final"]["test/nll"] == whole["final"]["test/nll"]


def test_the_best_checkpoint_before_the_first_evaluation_is_refused_with_the_existing_ones(
    tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        stop_after(patched, 8)
        invoke(patched, capsys, tmp_path, *arguments_of(["optimizer=sam", "eval_every=5", "epochs=9"], "run"))
    done = invoke(monkeypatch, capsys, tmp_path, "run", "--checkpoint", "best", entry=evaluate_command.main)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: there is no best checkpoint in run/checkpoints: one is written after an evaluation\n"
        "  use --checkpoint last; there are: step-00000008-within, step-00000006\n"
    )
    done = invoke(monkeypatch, capsys, tmp_path, "run", "--checkpoint", "last", entry=evaluate_command.main)
    assert done.returncode == 0
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    done = invoke(monkeypatch, capsys, tmp_path, "run", "--checkpoint", "best", entry=evaluate_command.main)
    assert (done.returncode, "train the run up to an evaluation" in done.stderr) == (2, True)


def test_nonfinite_weights_are_not_saved_in_an_epoch_without_evaluation(tmp_path, monkeypatch, capsys):
    original = loop._train_step

    def step(run, *rest):
        original(run, *rest)
        if rest[-1].step == 6:  # the last of the first epoch
            next(iter(run.model.parameters())).detach()[0] = float("nan")

    monkeypatch.setattr(loop, "_train_step", step)
    done = invoke(monkeypatch, capsys, tmp_path, *arguments_of(["optimizer=sam", "epochs=4", "eval_every=2"], "run"))
    assert done.returncode == 1
    assert "weights is not finite after epoch 1" in done.stderr
    assert "grad_clip=5\n" in done.stderr and "on_nonfinite=skip" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize(("ended", "asked"), [(4, 9), (4, 6), (5, 12), (6, 9), (7, 12), (9, 11)])
def test_a_run_that_max_steps_ended_is_made_longer_to_the_bytes_of_the_longer_run(ended, asked, tmp_path):
    """Six steps an epoch: the ends are within epochs and between them."""
    words = [
        "optimizer=sam",
        "schedule=constant",
        "precision=fp32",
        "log_every=3",
        "ema_decay=0.9",
        "model.dropout=0.2",
    ]
    straight = train_tiny(tmp_path / "straight", *words, f"max_steps={asked}")
    train_tiny(tmp_path / "longer", *words, f"max_steps={ended}")
    longer = train_tiny(tmp_path / "longer", *words, f"max_steps={asked}")
    assert (longer / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    states = [CheckpointFolder(folder / "checkpoints").load_latest() for folder in (straight, longer)]
    assert states[0]["step"] == asked
    for part in ("model", "optimizer", "ema"):
        assert equal_values(*(state[part] for state in states))
