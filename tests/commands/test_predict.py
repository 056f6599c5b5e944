"""sam-predict on sets of runs and on image files: numbers, columns, unreadable files, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sam_runner
from sam_runner.commands.inference import predict
from sam_runner.data.datasets.digits import digits
from tests.helpers import invoke, train_tiny
from tests.oracles.probabilities import probabilities_of

CPU = ("device=cpu", "precision=fp32")
PHOTOS = ("data=image_folder", "data.image_size=8", "data.eval_crop_ratio=0.75", "model.width=4", "batch_size=8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on digits; `noisy` has wrong labels and held-out images."""
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "one": ("seed=0",),
        "two": ("seed=1", "optimizer=sgd"),
        "noisy": ("noise=symmetric", "noise.rate=0.4", "data.val_fraction=0.25"),
        "other": ("noise=symmetric", "noise.rate=0.4", "data.val_fraction=0.25", "seed=1"),
    }
    for name, own in words.items():
        sam_runner.train(["model.width=4", "epochs=1", *CPU, f"run_dir={folder / name}", *own])
    return {name: folder / name for name in words}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run on folders of images of several sizes, and the images."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        for label, name in enumerate(("cat", "dog")):
            (folder / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 156, (12 + index, 20, 3)) + 100 * label * np.array([1, 0, 0])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / part / name / f"{index}.png")
    words = (*PHOTOS, f"data.root={folder / 'images'}", "epochs=1", *CPU)
    sam_runner.train([*words, f"run_dir={folder / 'run'}"])
    return folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    return lambda *words: invoke(monkeypatch, capsys, tmp_path, *words, entry=predict.main)


def columns_of(table, first="p_"):
    return table[[name for name in table if name.startswith(first)]].to_numpy()


def test_the_test_set_is_predicted_as_the_network_does_it_by_hand(runs, call, tmp_path):
    done = call(runs["one"])
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "predictions.csv")
    test = digits().test
    expected = probabilities_of(runs["one"], images=test.images_NCHW)
    assert list(table)[:4] == ["index", "label", "predicted", "confidence"]
    assert table["index"].tolist() == list(range(355)) and table["label"].tolist() == test.labels.tolist()
    assert columns_of(table) == pytest.approx(expected, abs=2e-6)
    assert table["predicted"].tolist() == expected.argmax(1).tolist()
    assert table["confidence"].to_numpy() == pytest.approx(expected.max(1), abs=2e-6)
    accuracy = sam_runner.load_run(runs["one"]).final["test/accuracy"]
    assert done.stdout == f"predictions.csv: 355 images, accuracy on the labels {accuracy:.4f}\n"


def test_several_runs_have_the_mean_of_their_probabilities(runs, call, tmp_path):
    done = call(runs["one"], runs["two"], "--out", "mean.csv")
    assert done.returncode == 0 and "mean of the probabilities of 2 runs" in done.stdout
    expected = probabilities_of(runs["one"], runs["two"], images=digits().test.images_NCHW)
    assert columns_of(pd.read_csv(tmp_path / "mean.csv")) == pytest.approx(expected, abs=2e-6)


def test_the_training_set_has_both_labels_and_positions_in_the_data_set(runs, call, tmp_path):
    assert call(runs["noisy"], "--split", "train").returncode == 0
    table, train = pd.read_csv(tmp_path / "predictions.csv"), digits().train
    assert len(table) == 1442 - 360 and table["index"].is_monotonic_increasing
    assert table["clean_label"].tolist() == train.labels[table["index"].tolist()].tolist()
    assert (table["label"] != table["clean_label"]).sum() == round(0.4 * len(table))
    assert call(runs["noisy"], "--split", "validation", "--overwrite").returncode == 0
    held_out = pd.read_csv(tmp_path / "predictions.csv")
    assert set(held_out["index"]) | set(table["index"]) == set(range(1442)) and "clean_label" not in held_out


def test_files_need_no_training_images_and_get_the_label_of_their_folder(photos, call, tmp_path):
    hidden = photos / "hidden"
    (photos / "images").rename(hidden)
    try:
        done = call(photos / "run", hidden / "test")
        assert done.returncode == 0, done.stderr
        single = call(photos / "run", hidden / "test/dog/3.png", "--out", "single.csv")
    finally:
        hidden.rename(photos / "images")
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["path"].tolist() == [f"{hidden}/test/{c}/{i}.png" for c in ("cat", "dog") for i in range(6)]
    assert table["label"].tolist() == ["cat"] * 6 + ["dog"] * 6
    assert f"{sam_runner.load_run(photos / 'run').final['test/accuracy']:.4f}" in done.stdout
    (row,) = pd.read_csv(tmp_path / "single.csv").to_dict("records")
    assert np.isnan(row["label"]) and "accuracy" not in single.stdout
    assert row["p_dog"] == pytest.approx(table["p_dog"][9], abs=1e-6)
    assert call(photos / "run", "--out", "split.csv").returncode == 0
    own = pd.read_csv(tmp_path / "split.csv")
    assert own["path"].tolist() == [f"test/{c}/{i}.png" for c in ("cat", "dog") for i in range(6)]
    pd.testing.assert_frame_equal(own.drop(columns="path"), table.drop(columns="path"))


def test_images_on_disk_are_predicted_as_images_in_memory(photos, call, tmp_path):
    words = (
        *PHOTOS,
        f"data.root={photos / 'images'}",
        "data.num_workers=0",
        "epochs=1",
        "device=cpu",
        "precision=fp32",
    )
    for storage in ("disk", "memory"):
        sam_runner.train([*words, f"data.storage={storage}", f"run_dir={tmp_path / storage}"])
        assert call(tmp_path / storage, "--out", f"{storage}.csv").returncode == 0
    assert (tmp_path / "disk.csv").read_bytes() == (tmp_path / "memory.csv").read_bytes()


def test_grey_levels_of_colour_files_are_those_of_pillow(runs, call, tmp_path):
    draws = np.random.default_rng(1)
    images = [Image.fromarray(draws.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(8)]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    assert call(runs["one"], *(tmp_path / f"{index}.png" for index in range(8))).returncode == 0
    grey = torch.stack([torch.from_numpy(np.array(image.convert("L")))[None] for image in images])
    assert columns_of(pd.read_csv(tmp_path / "predictions.csv")) == pytest.approx(
        probabilities_of(runs["one"], images=grey), abs=2e-6
    )


def test_unreadable_files_are_all_told_and_the_others_predicted(photos, call, tmp_path):
    for name in ("bad.png", "empty.jpg"):
        (tmp_path / name).write_bytes(b"no image" if name == "bad.png" else b"")
    good = photos / "images/test/cat/0.png"
    done = call(photos / "run", photos / "run", tmp_path / "bad.png", good, tmp_path / "empty.jpg")
    assert done.returncode == 2
    assert "images that cannot be read: 2" in done.stderr
    assert done.stderr.endswith("  the other images are in predictions.csv\n")
    assert f"{tmp_path}/bad.png cannot be read as an image: its content is no image" in done.stderr
    assert "empty.jpg cannot be read as an image: it is empty" in done.stderr
    assert pd.read_csv(tmp_path / "predictions.csv")["path"].tolist() == [str(good)]
    done = call(photos / "run", tmp_path / "bad.png", "--out", "none.csv")
    assert done.returncode == 2 and not (tmp_path / "none.csv").exists()


def test_several_runs_predict_the_files_that_all_of_them_can_read(photos, call, tmp_path):
    draws = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "wide" / part / name).mkdir(parents=True)
            for index in range(4):
                pixels = draws.integers(0, 256, (8, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "wide" / part / name / f"{index}.png")
    wide = tmp_path / "run"  # its network is for images of 12 x 8 pixels
    words = (*PHOTOS[:1], *PHOTOS[3:], f"data.root={tmp_path / 'wide'}", "epochs=1", *CPU)
    sam_runner.train([*words, f"run_dir={wide}"])
    other, files = photos / "images/test/dog/1.png", tmp_path / "wide/test/dog"
    for runs in ((photos / "run", wide), (wide, photos / "run")):
        done = call(*runs, other, files, "--overwrite")
        assert done.returncode == 2, done.stderr
        assert "1.png is 20x13 pixels, the network needs 12x8" in done.stderr
        table = pd.read_csv(tmp_path / "predictions.csv")
        assert table["path"].tolist() == [str(files / f"{index}.png") for index in range(4)]
        both = [probabilities_of_files(run, call, files, tmp_path) for run in runs]
        assert columns_of(table) == pytest.approx(np.mean(both, 0), abs=2e-6)


def probabilities_of_files(run, call, files, folder):
    assert call(run, files, "--out", "single.csv", "--overwrite").returncode == 0
    return columns_of(pd.read_csv(folder / "single.csv"))


def test_an_existing_file_is_kept(runs, call, tmp_path):
    (tmp_path / "predictions.csv").write_text("mine")
    done = call(runs["one"])
    assert done.returncode == 2 and "--overwrite" in done.stderr
    assert (tmp_path / "predictions.csv").read_text() == "mine"
    assert call(runs["one"], "--overwrite").returncode == 0
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 355


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("NOISY", "OTHER", "--split", "train"), "the train sets of"),
        (("ONE", "NOISY", "--split", "validation"), "has no validation set"),
        (("ONE", "PHOTOS"), "has other classes than"),
        (("ONE", "nowhere"), "nowhere does not exist"),
        (("IMAGES",), "holds no run"),
        (("PHOTOS", "IMAGES", "--split", "test"), "--split test has no effect with image files"),
        (("ONE", "--out", "table.txt"), "is not the name of a .csv file"),
        (("ONE", "--checkpoint", "newest"), "invalid choice"),
        (("ONE", "--output", "x.csv"), "did you mean --out?"),
        (("ONE", "EMPTY"), "no image in"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(runs, photos, call, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    places = {name.upper(): path for name, path in runs.items()}
    places |= {"PHOTOS": photos / "run", "IMAGES": photos / "images", "EMPTY": tmp_path / "empty"}
    if words[:2] == ("ONE", "PHOTOS"):
        words = (*words, "IMAGES")
    done = call(*(places.get(word, word) for word in words))
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*.csv"))


def test_networks_for_other_channels_are_refused(call, tmp_path):
    run = train_tiny(tmp_path / "run", "epochs=1", "data.channels=2")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = call(run, tmp_path / "a.png")
    assert done.returncode == 2 and "needs images of 2 channels" in done.stderr
