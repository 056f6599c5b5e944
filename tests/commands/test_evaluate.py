"""sam-eval: one run as before, several runs and their ensemble, other data, refusals."""

import json

import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

import sam_runner
from sam_runner.commands import evaluate
from sam_runner.config.experiment import load_experiment
from sam_runner.data.datasets.digits import digits
from sam_runner.runs.folder import read_config
from sam_runner.training.builders.data import build_data
from tests.helpers import invoke
from tests.oracles.probabilities import probabilities_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "one": ("seed=0", "data.val_fraction=0.2"),
        "two": ("seed=1", "data.val_fraction=0.2", "ema_decay=0.9"),
        "noisy": ("noise=symmetric", "noise.rate=0.4", "augment=basic"),
        "three": ("data.val_fraction=0.3",),
        "other": ("data=synthetic", "data.channels=1", "data.image_size=8"),
    }
    for name, own in words.items():
        common = ["model.width=4", "epochs=1", "device=cpu", "precision=fp32", f"run_dir={folder / name}"]
        sam_runner.train([*common, *own])
    return {name: folder / name for name in words}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    return lambda *words: invoke(monkeypatch, capsys, tmp_path, *words, entry=evaluate.main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first forty test images of the digits as files, one folder for each class."""
    place, test = tmp_path_factory.mktemp("files"), digits().test
    for index in range(40):
        name = place / test.classes[test.labels[index]] / f"{index}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(test.images_NCHW[index, 0].numpy()).save(name)
    return place


def read_table(text):
    head, *rows = (line.split() for line in text.splitlines())
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_one_run_has_a_line_for_each_metric_as_it_was_logged(runs, call):
    done = call(f"run_dir={runs['one']}")
    assert done.returncode == 0, done.stderr
    final = json.loads((runs["one"] / "result.json").read_text())["final"]
    expected = [f"{tag} {value:.6f}" for tag, value in final.items() if tag.startswith(("test/", "validation/"))]
    assert sorted(done.stdout.splitlines()) == sorted(expected) and len(expected) == 8


def test_several_runs_have_a_table_and_an_ensemble(runs, call):
    done = call(runs["one"], runs["two"])
    assert done.returncode == 0, done.stderr
    rows = read_table(done.stdout)
    assert list(rows) == [str(runs["one"]), str(runs["two"]), "ensemble"]
    for name in ("one", "two"):
        final = json.loads((runs[name] / "result.json").read_text())["final"]
        row = rows[str(runs[name])]
        assert all(row[tag] == f"{value:.6f}" for tag, value in final.items() if tag in row)
    assert rows[str(runs["one"])]["test_ema/accuracy"] == "-" != rows[str(runs["two"])]["test_ema/accuracy"]
    test = digits().test
    mean = probabilities_of(runs["one"], runs["two"], images=test.images_NCHW)
    assert float(rows["ensemble"]["test/accuracy"]) == pytest.approx(
        accuracy_score(test.labels, mean.argmax(1)), abs=1e-6
    )
    assert float(rows["ensemble"]["test/nll"]) == pytest.approx(log_loss(test.labels, mean), abs=2e-6)
    assert rows["ensemble"]["validation/accuracy"] != "-" and rows["ensemble"]["test_ema/accuracy"] == "-"


def test_the_training_set_is_evaluated_on_its_labels_without_augmentation(runs, call):
    done = call(runs["noisy"], "--split", "train")
    assert done.returncode == 0, done.stderr
    values = {tag: float(value) for tag, value in map(str.split, done.stdout.splitlines())}
    config = load_experiment(read_config(runs["noisy"]).to_dict())
    train = build_data(config.data, config.noise, config.seed).train
    mean = probabilities_of(runs["noisy"], images=train.images_NCHW)
    wrong = (train.labels != train.clean_labels).numpy()
    predicted, labels = mean.argmax(1), train.labels.numpy()
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "nll": log_loss(labels, mean, labels=range(10)),
        "accuracy_clean": accuracy_score(labels[~wrong], predicted[~wrong]),
        "memorised": accuracy_score(labels[wrong], predicted[wrong]),
        "recovered": accuracy_score(train.clean_labels.numpy()[wrong], predicted[wrong]),
    }
    assert 0.3 < wrong.mean() < 0.5
    assert {name: values[f"train/{name}"] for name in expected} == pytest.approx(expected, abs=2e-6)
    assert set(values) == {f"train/{name}" for name in (*expected, "calibration_error", "accuracy_top5")}


def test_a_split_of_several_runs_has_an_ensemble(runs, call):
    done = call(runs["one"], runs["two"], "--split", "validation")
    assert done.returncode == 0, done.stderr
    rows = read_table(done.stdout)
    whole = read_table(call(runs["one"], runs["two"]).stdout)
    assert {name: row["validation/nll"] for name, row in rows.items()} == {
        name: row["validation/nll"] for name, row in whole.items()
    }
    assert "test/nll" not in rows["ensemble"]
    differ = call(runs["one"], runs["noisy"], "--split", "train")
    assert differ.returncode == 0 and "no ensemble: the train sets of" in differ.stdout, differ.stderr


def test_runs_on_other_images_have_no_ensemble(runs, call):
    done = call(runs["one"], runs["other"])
    assert done.returncode == 0, done.stderr
    assert "ensemble  " not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("no ensemble: the test sets of")


def test_sets_that_differ_leave_the_ensemble_of_the_others(runs, call):
    done = call(runs["one"], runs["three"])
    assert done.returncode == 0, done.stderr
    rows = read_table("\n".join(done.stdout.splitlines()[:-1]))
    assert rows["ensemble"]["test/accuracy"] != "-"
    assert rows["ensemble"]["validation/accuracy"] == "-"
    assert done.stdout.splitlines()[-1].startswith("no ensemble: the validation sets of")


def test_other_data_are_a_folder_of_classes(runs, call, folder):
    done = call(runs["one"], "--data", folder)
    assert done.returncode == 0, done.stderr
    values = dict(line.split() for line in done.stdout.splitlines())
    test = digits().test.subset(torch.arange(40))
    mean = probabilities_of(runs["one"], images=test.images_NCHW)
    assert float(values["data/accuracy"]) == pytest.approx(accuracy_score(test.labels, mean.argmax(1)), abs=1e-6)
    assert float(values["data/nll"]) == pytest.approx(log_loss(test.labels, mean, labels=range(10)), abs=2e-6)
    both = read_table(call(runs["one"], runs["two"], "--data", folder).stdout)
    mean = probabilities_of(runs["one"], runs["two"], images=test.images_NCHW)
    assert float(both["ensemble"]["data/nll"]) == pytest.approx(log_loss(test.labels, mean, labels=range(10)), abs=2e-6)


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("3/a.png", "cat/b.png"), "images outside the class folders: 1, such as"),
        (("a.png",), "with the classes 0, 1, 2"),
        (("train/3/a.png", "test/3/a.png"), "holds splits\n  give one of them: --data"),
        ((), "no image in"),
    ],
)
def test_folders_without_labels_are_refused(runs, call, tmp_path, files, message):
    (tmp_path / "data").mkdir()
    done = call(runs["one"], "--data", write(tmp_path / "data", *files))
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_an_unreadable_file_leaves_no_number(runs, call, tmp_path):
    write(tmp_path / "data", "3/a.png")
    (tmp_path / "data/3/b.png").write_bytes(b"no image")
    done = call(runs["one"], "--data", tmp_path / "data")
    assert done.returncode == 2 and "images that cannot be read: 1" in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ONE", "OTHER", "--data", "FOLDER"), "has other classes than"),
        (("ONE", "TWO", "--relabel", "x.npy"), "--relabel labels the training images of one run"),
        (("ONE", "--relabel", "x.npy", "--data", "FOLDER"), "with --data it has no effect"),
        (("ONE", "--relabel", "x.csv"), "is not the name of a .npy file"),
        (("ONE", "--split", "train", "--data", "FOLDER"), "--split train has no effect with --data"),
        (("ONE", "--split", "test", "--relabel", "x.npy"), "--split test has no effect with --relabel"),
        (("OTHER", "--split", "validation"), "has no validation set"),
        (("ONE", "--data", "nowhere"), "is not a folder"),
        (("FOLDER",), "holds no run"),
    ],
)
def test_bad_input_is_refused(runs, call, folder, words, message):
    places = {name.upper(): path for name, path in runs.items()} | {"FOLDER": folder}
    done = call(*(places.get(word, word) for word in words))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
