"""Early stopping by a metric of the validation set: where a run ends, with which weights, and how it continues."""

import os
import signal
from typing import get_args

import pytest
import torch

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.config.experiment import SelectionMetric
from sam_runner.reports.aggregate import ranking_sign
from sam_runner.runs.load import restore_run
from sam_runner.training import loop
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.training.metrics import is_better
from sam_runner.training.state import Progress
from tests.helpers import TINY, config_of, invoke, read_rows, train_tiny
from tests.training.test_loop import equal_values, load_state, read_result

HARD = (
    "optimizer=sam", "rho=0.1", "noise=symmetric", "noise.rate=0.6", "data.val_fraction=0.5", "epochs=30", "lr=0.3",
    "precision=fp32", "model.dropout=0.3",
)  # fmt: skip
PATIENCE = 3
MILD = (*HARD, "noise.rate=0.2", "epochs=20")  # accuracy and likelihood are best after different epochs


def find_end(accuracies, patience):
    """(last epoch, best epoch) by the rule, from the accuracies of all epochs of a run without early stopping."""
    for epoch in range(1, len(accuracies) + 1):
        best = accuracies.index(max(accuracies[:epoch])) + 1
        if epoch - best == patience:
            return epoch, best
    return len(accuracies), accuracies.index(max(accuracies)) + 1


def epoch_rows(folder):
    return [row for row in read_rows(folder) if "validation/accuracy" in row]


def test_evaluations_are_counted_since_the_first_of_the_best():
    progress, counts = Progress(), []
    for epoch, accuracy in enumerate((0.5, 0.4, 0.6, 0.6, 0.55, 0.7, 0.7, 0.1), 1):
        progress.epoch = epoch
        loop._record_evaluation(progress, {"validation/accuracy": accuracy}, "validation/accuracy")
        counts.append((progress.evaluations_since_best, progress.best_epoch))
    assert counts == [(0, 1), (1, 1), (0, 3), (1, 3), (2, 3), (0, 6), (1, 6), (2, 6)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("runs") / "whole", *HARD)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("runs") / "stopped", *HARD, f"early_stopping.patience={PATIENCE}")


def test_a_run_ends_by_the_rule_and_its_rows_are_those_of_the_whole_run(whole, stopped):
    accuracies = [row["validation/accuracy"] for row in epoch_rows(whole)]
    last, best = find_end(accuracies, PATIENCE)
    assert 1 < best < last < 30  # otherwise the problem shows nothing
    result = read_result(stopped)
    assert (result["epoch"], result["best_epoch"], result["stopped_early"]) == (last, best, True)
    rows = read_rows(stopped)
    assert rows == read_rows(whole)[: len(rows)]
    assert rows[-1]["epoch"] == last
    assert result["final"] == result["best"]
    expected = epoch_rows(whole)[best - 1]
    assert result["final"] == {name: value for name, value in expected.items() if name not in ("step", "epoch")}
    assert read_result(whole)["stopped_early"] is False


def test_the_weights_of_an_ended_run_are_the_best(stopped, tmp_path, monkeypatch, capsys):
    best = CheckpointFolder(stopped / "checkpoints").load_best()
    assert best["progress"]["epoch"] == read_result(stopped)["best_epoch"] < load_state(stopped)["progress"]["epoch"]
    model = restore_run(stopped, "last").model.state_dict()
    assert all(torch.equal(model[name], best["model"][name]) for name in model)
    printed = invoke(monkeypatch, capsys, tmp_path, stopped, entry=evaluate_command.main).stdout
    assert f"validation/accuracy {read_result(stopped)['final']['validation/accuracy']:.6f}\n" in printed


@pytest.mark.parametrize("where", ["step", "epoch", "last epoch", "result"])
def test_a_killed_run_stops_at_the_same_epoch_with_the_same_bits(where, stopped, tmp_path, monkeypatch, capsys):
    words = [*TINY, *HARD, f"early_stopping.patience={PATIENCE}", f"run_dir={tmp_path / 'run'}"]
    last = read_result(stopped)["epoch"]

    def kill(*_, **__):
        raise KeyboardInterrupt  # nothing is saved, as with SIGKILL

    with monkeypatch.context() as patch:
        if where == "step":
            original, taken = loop._train_step, []

            def step(*arguments):
                taken.append(1)
                if len(taken) == 3 * last - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(*arguments)

            patch.setattr(loop, "_train_step", step)
        elif where == "result":
            patch.setattr("sam_runner.runs.start.write_result", kill)
        else:
            evaluate, count = loop.evaluate, []
            wanted = last if where == "last epoch" else last - 1

            def evaluate_or_die(*arguments):
                count.append(1)
                return kill() if len(count) == wanted else evaluate(*arguments)

            patch.setattr(loop, "evaluate", evaluate_or_die)
        cut = invoke(patch, capsys, tmp_path, *words)
    assert cut.returncode in (75, 130)
    assert not (tmp_path / "run" / "result.json").exists()
    done = invoke(monkeypatch, capsys, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    best = read_result(stopped)["best_epoch"]
    assert f"ended after epoch {last}, validation/accuracy was best after epoch {best}\n" in done.stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    result, expected = read_result(tmp_path / "run"), read_result(stopped)
    for name in ("epoch", "step", "final", "best", "best_epoch", "stopped_early", "fingerprint"):
        assert result[name] == expected[name]
    for which in ("load_latest", "load_best"):
        first, second = (getattr(CheckpointFolder(run / "checkpoints"), which)() for run in (tmp_path / "run", stopped))
        assert equal_values(first["model"], second["model"])
        assert equal_values(first["optimizer"], second["optimizer"])


def test_more_patience_continues_to_the_bits_of_the_whole_run(stopped, whole, tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run", *HARD, f"early_stopping.patience={PATIENCE}")
    again = invoke(
        monkeypatch, capsys, tmp_path, *TINY, *HARD, f"early_stopping.patience={PATIENCE}", f"run_dir={folder}"
    )
    assert "already finished" in again.stdout
    more = invoke(monkeypatch, capsys, tmp_path, *TINY, *HARD, "early_stopping.patience=100", f"run_dir={folder}")
    assert more.returncode == 0, more.stderr
    assert f"patience changed, {PATIENCE} -> 100: the run stops according to the new patience" in more.stdout
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    result, accuracies = read_result(folder), [row["validation/accuracy"] for row in epoch_rows(whole)]
    assert (result["epoch"], result["stopped_early"]) == (30, False)
    assert result["best_epoch"] == find_end(accuracies, 100)[1]
    assert result["final"] == result["best"]  # also where the last epoch ended the run


def test_evaluations_are_counted_and_not_epochs(whole, tmp_path):
    folder = train_tiny(tmp_path / "run", *HARD, "eval_every=2", "early_stopping.patience=2")
    accuracies = [row["validation/accuracy"] for row in epoch_rows(whole)][1::2]
    last, best = find_end(accuracies, 2)
    result = read_result(folder)
    assert (result["epoch"], result["best_epoch"]) == (2 * last, 2 * best)


def test_without_held_out_images_it_is_refused(tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, "early_stopping.patience=2", "run_dir=run")
    assert done.returncode == 2
    assert "early_stopping.patience needs held-out images" in done.stderr
    assert not (tmp_path / "run").exists()
    for wrong in ("0", "soon"):
        done = invoke(monkeypatch, capsys, tmp_path, *TINY, f"early_stopping.patience={wrong}")
        assert done.returncode == 2
        assert "early_stopping.patience" in done.stderr


def test_the_plan_says_that_the_run_may_end_early(tmp_path, monkeypatch, capsys):
    words = [*TINY, "data.val_fraction=0.25", "early_stopping.patience=4", "dry_run=true"]
    assert (
        "ends after 4 evaluations without a better validation/accuracy"
        in invoke(monkeypatch, capsys, tmp_path, *words).stdout
    )


def test_a_run_without_early_stopping_has_the_fingerprint_of_earlier_versions():
    assert config_of("early_stopping.patience=null").fingerprint() == config_of().fingerprint() == "e3cb61d0fa6b"
    assert config_of("early_stopping.patience=5").fingerprint() != config_of().fingerprint()


def test_a_run_of_an_earlier_version_can_be_continued(tmp_path, monkeypatch, capsys):
    folder = train_tiny(tmp_path / "run", "optimizer=sam")
    config = (folder / "config.yaml").read_text()
    older = config.replace("early_stopping:\n  patience: null\n  metric: validation/accuracy\n", "")
    assert older != config
    (folder / "config.yaml").write_text(older)
    longer = invoke(monkeypatch, capsys, tmp_path, *TINY, "optimizer=sam", "epochs=3", f"run_dir={folder}")
    assert longer.returncode == 0, longer.stderr
    assert read_result(folder)["epoch"] == 3


@pytest.mark.parametrize("metric", get_args(SelectionMetric))
def test_reports_and_training_agree_which_way_a_metric_is_better(metric):
    higher = ranking_sign(metric) == 1
    assert (is_better(metric, 2.0, 1.0), is_better(metric, 1.0, 2.0)) == (higher, not higher)
    assert not is_better(metric, 1.0, 1.0)


def test_the_lowest_likelihood_is_the_best_and_the_first_of_equal_ones():
    progress, counts = Progress(), []
    for epoch, nll in enumerate((0.9, 1.0, 0.7, 0.7, 0.6), 1):
        progress.epoch = epoch
        loop._record_evaluation(progress, {"validation/nll": nll, "validation/accuracy": nll}, "validation/nll")
        counts.append((progress.evaluations_since_best, progress.best_epoch))
    assert counts == [(0, 1), (1, 1), (0, 3), (1, 3), (0, 5)]


@pytest.fixture(scope="module")
def mild(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("runs") / "mild", *MILD)


def test_another_metric_ends_the_run_and_chooses_its_weights(mild, tmp_path, monkeypatch, capsys):
    words = [f"early_stopping.patience={PATIENCE}", "early_stopping.metric=validation/nll"]
    folder = train_tiny(tmp_path / "run", *MILD, *words)
    rows = epoch_rows(mild)
    last, best = find_end([-row["validation/nll"] for row in rows], PATIENCE)
    assert (last, best) != find_end([row["validation/accuracy"] for row in rows], PATIENCE)  # else it shows nothing
    result = read_result(folder)
    assert (result["epoch"], result["best_epoch"], result["stopped_early"]) == (last, best, True)
    assert result["selected_by"] == "validation/nll"
    assert result["final"]["validation/nll"] == rows[best - 1]["validation/nll"]
    assert CheckpointFolder(folder / "checkpoints").load_best()["progress"]["epoch"] == best
    assert f"ended after epoch {last}, validation/nll was best after epoch {best}" in (folder / "run.log").read_text()
    other = invoke(monkeypatch, capsys, tmp_path, *TINY, *MILD, words[0], f"run_dir={folder}")
    assert other.returncode == 2 and "early_stopping.metric" in other.stderr
    assert read_result(folder) == result


def test_without_a_patience_the_metric_chooses_the_best_checkpoint(mild, tmp_path):
    folder = train_tiny(tmp_path / "run", *MILD, "early_stopping.metric=validation/nll")
    values = [row["validation/nll"] for row in epoch_rows(mild)]
    best = 1 + values.index(min(values))
    assert best != read_result(mild)["best_epoch"]  # that of the accuracy
    result = read_result(folder)
    assert (result["epoch"], result["best_epoch"]) == (20, best)
    assert CheckpointFolder(folder / "checkpoints").load_best()["progress"]["epoch"] == best
    assert (folder / "metrics.jsonl").read_bytes() == (mild / "metrics.jsonl").read_bytes()


def test_the_average_of_the_weights_can_choose(tmp_path):
    words = ("ema_decay=0.8", "early_stopping.metric=validation_ema/nll", "data.num_classes=7", "epochs=12")
    folder = train_tiny(tmp_path / "run", *HARD, *words)
    values = [row["validation_ema/nll"] for row in epoch_rows(folder)]
    assert read_result(folder)["best_epoch"] == 1 + values.index(min(values))
    top5 = train_tiny(tmp_path / "top5", *HARD, *words[2:], "early_stopping.metric=validation/accuracy_top5")
    values = [row["validation/accuracy_top5"] for row in epoch_rows(top5)]
    assert read_result(top5)["best_epoch"] == 1 + values.index(max(values))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("early_stopping.metric=validation/nl", "data.val_fraction=0.25"), ", ".join(get_args(SelectionMetric))),
        (("early_stopping.metric=test/accuracy", "data.val_fraction=0.25"), "is not known\n  accepted: validation/"),
        (("early_stopping.metric=validation/nll",), "early_stopping.metric=validation/nll needs held-out images"),
        (
            ("early_stopping.metric=validation_ema/nll", "data.val_fraction=0.25"),
            "add ema_decay=0.999, or use validation/nll",
        ),
        (
            ("early_stopping.metric=validation/accuracy_top5", "data.val_fraction=0.25"),
            "needs more than five classes, the data have 4",
        ),
    ],
)
def test_a_metric_that_a_run_does_not_have_is_refused(words, expected, tmp_path, monkeypatch, capsys):
    done = invoke(monkeypatch, capsys, tmp_path, *TINY, *words, "run_dir=run")
    assert done.returncode == 2
    assert expected in done.stderr
    assert not (tmp_path / "run").exists()


def test_every_nth_epoch_is_kept(tmp_path):
    folder = train_tiny(tmp_path / "run", "epochs=7", "checkpoint.every_epochs=3", "checkpoint.min_interval=1000")
    names = sorted(path.stem for path in (folder / "checkpoints").glob("*.json"))
    assert names == ["step-00000018", "step-00000036", "step-00000042"]  # epochs 3 and 6, and the last


def test_the_end_of_an_incomplete_epoch_is_not_the_best_of_a_longer_run(tmp_path, monkeypatch):
    """Three steps an epoch. The run that is made longer has no row of the end after step 4 any more."""
    accuracies, original = {3: 0.5, 4: 0.9, 6: 0.4, 9: 0.3, 12: 0.2}, loop._record_evaluation

    def record(progress, values, *rest):
        values["validation/accuracy"] = accuracies[progress.step]
        return original(progress, values, *rest)

    monkeypatch.setattr(loop, "_record_evaluation", record)
    words = ("optimizer=sgd", "schedule=constant", "data.val_fraction=0.5", "epochs=4", "checkpoint.keep_epochs=[2]")
    folder = train_tiny(tmp_path / "run", *words, "max_steps=4")
    checkpoints = CheckpointFolder(folder / "checkpoints")
    assert (read_result(folder)["best_epoch"], checkpoints.list_names("best")) == (2, ["step-00000004"])
    train_tiny(folder, *words)
    assert (read_result(folder)["best_epoch"], checkpoints.list_names("best")) == (1, ["step-00000003"])
    assert checkpoints.load_best()["step"] == 3
    assert checkpoints.list_names("all") == [f"step-{step:08d}" for step in (3, 6, 9, 12)]
