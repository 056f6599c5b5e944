"""sam-suspects on digits with wrong labels: the ranking, the quality that it prints, the page, refusals."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

import sam_runner
from sam_runner.commands.inference import suspects
from sam_runner.data.datasets.digits import digits
from tests.helpers import invoke, write_image_folder
from tests.oracles.probabilities import probabilities_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    noise = ("noise=symmetric", "noise.rate=0.2")
    words = {"one": noise, "wide": (*noise, "model.width=8"), "other": (*noise, "seed=1", "epochs=1")}
    for name, own in words.items():
        common = ["optimizer=sam", "rho=0.1", "model.width=4", "epochs=4", "device=cpu", "precision=fp32"]
        sam_runner.train([*common, f"run_dir={folder / name}", *own])
    return {name: folder / name for name in words}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    return lambda *words: invoke(monkeypatch, capsys, tmp_path, *words, entry=suspects.main)


def test_images_are_ranked_by_the_probability_of_their_label(runs, call, tmp_path):
    done = call(runs["one"], runs["wide"])
    assert done.returncode == 0, done.stderr
    table, train = pd.read_csv(tmp_path / "suspects.csv"), digits().train
    assert len(table) == 1442 and table["self_confidence"].is_monotonic_increasing
    assert (table["clean_label"] == train.labels[table["index"].tolist()].numpy()).all()
    mean = probabilities_of(runs["one"], runs["wide"], images=train.images_NCHW)
    expected = mean[table["index"], table["label"]]
    assert table["self_confidence"].to_numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert table["predicted"].tolist() == mean[table["index"]].argmax(1).tolist()
    is_wrong = table["label"] != table["clean_label"]
    assert is_wrong.sum() == round(0.2 * 1442)
    quality = average_precision_score(is_wrong, -expected)
    assert quality > 0.6  # 0.2 for a random order
    line = done.stdout.splitlines()[-2]
    assert line == (
        f"precision at 100 {is_wrong[:100].mean():.4f}, precision at 1,000 {is_wrong[:1000].mean():.4f}, "
        f"average precision {quality:.4f}, 288 of 1,442 labels are wrong (0.1997)"
    )


def test_the_page_has_the_pixels_of_the_first_images(runs, call, tmp_path):
    assert call(runs["one"], "--out", "found/list.csv").returncode == 0
    table = pd.read_csv(tmp_path / "found/list.csv")
    pictures = re.findall(r"base64,([^\"]+)\"", (tmp_path / "found/list.html").read_text())
    assert len(pictures) == 50
    for index, picture in zip(table["index"], pictures, strict=False):
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert (pixels == digits().train.images_NCHW[index, 0].numpy()).all()


def test_images_on_disk_are_ranked_by_path(call, tmp_path):
    root = write_image_folder(tmp_path / "photos")
    words = ("data=image_folder", f"data.root={root}", "data.image_size=8", "data.storage=disk", "data.num_workers=0")
    sam_runner.train(
        [*words, "model.width=4", "epochs=1", "batch_size=16", "device=cpu", f"run_dir={tmp_path / 'run'}"]
    )
    assert call(tmp_path / "run").returncode == 0
    table = pd.read_csv(tmp_path / "suspects.csv")
    assert set(table["path"]) == {f"train/{name}/{index}.png" for name in "ab" for index in range(32)}
    assert all(path.split("/")[1] == label for path, label in zip(table["path"], table["label"], strict=True))
    pictures = re.findall(r"base64,([^\"]+)\"", (tmp_path / "suspects.html").read_text())
    for path, picture in zip(table["path"], pictures, strict=False):
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert (shown == np.array(Image.open(root / path))).all()


def test_a_run_that_has_memorised_its_labels_is_told(call, tmp_path):
    sam_runner.train(["optimizer=sgd", "epochs=6", "device=cpu", "precision=fp32", f"run_dir={tmp_path / 'run'}"])
    done = call(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "suspects.csv")
    accuracy = (table["label"] == table["predicted"]).mean()
    assert accuracy > 0.95 and f"predicts {accuracy:.1%} of its training labels" in done.stdout
    assert "average precision" not in done.stdout and "clean_label" not in table


def test_the_test_images_are_ranked_too(runs, call, tmp_path):
    done = call(runs["one"], "--split", "test", "--out", "test.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "test.csv: 355 test images; the first 50: test.html\n"
    table, test = pd.read_csv(tmp_path / "test.csv"), digits().test
    probabilities = probabilities_of(runs["one"], images=test.images_NCHW)
    expected = probabilities[table["index"], test.labels[table["index"].tolist()].numpy()]
    assert table["self_confidence"].to_numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert "First 50 of 355 test images" in (tmp_path / "test.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ONE", "--split", "validation"), "has no validation set"),
        (("ONE", "OTHER"), "the train sets of"),
        (("ONE", "--out", "list.txt"), "is not the name of a .csv file"),
        (("nowhere",), "is not a folder"),
        (("ONE", "--out", "old.csv"), "old.html exists already"),
    ],
)
def test_bad_input_is_refused(runs, call, tmp_path, words, message):
    (tmp_path / "old.html").write_text("mine")
    done = call(*({name.upper(): path for name, path in runs.items()}.get(word, word) for word in words))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "old.html").read_text() == "mine" and not list(tmp_path.glob("*.csv"))
