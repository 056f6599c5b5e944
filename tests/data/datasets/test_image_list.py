"""data=image_list: a CSV file of paths and labels, compared with what was written."""

import pytest
import torch
from PIL import Image

from sam_runner.data import reading
from sam_runner.data.datasets.image_list import image_list
from sam_runner.data.files.boxes import CropBox
from sam_runner.data.image_sets import ImageSet
from sam_runner.utils.errors import InputError
from tests.helpers import config_of


def write(folder, lines, size=(6, 6)):
    (folder / "photos").mkdir(exist_ok=True)
    for number in range(12):
        Image.new("RGB", size, (number * 20, 0, 0)).save(folder / "photos" / f"{number}.png")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / "labels.csv")


def read(**arguments):
    """The sets, with the images decoded that are to be in memory."""
    return image_list(**arguments).read()


def reds(part):
    return (part.images_NCHW[:, 0, 0, 0] // 20).tolist()


def test_rows_become_sets_with_both_labels(tmp_path, caplog):
    names, parts = ["dog", "cat"] * 6, ["train"] * 4 + ["val"] + ["Train"] * 3 + ["test"] * 4
    rows = [f"photos/{number}.png,{names[number]},{parts[number]},cat" for number in range(12)]
    splits = read(file=write(tmp_path, ["path,label,split,clean_label", *rows]), test_fraction=0.5)
    assert "data.test_fraction=0.5 has no effect: the test set is the rows with split test of" in caplog.text
    assert splits.train.classes == ("cat", "dog")
    assert reds(splits.train) == [0, 1, 2, 3, 5, 6, 7]
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 0, 1, 0]
    assert splits.train.clean_labels.tolist() == [0] * 7
    assert (reds(splits.validation), reds(splits.test)) == ([4], [8, 9, 10, 11])
    assert splits.test.labels.tolist() == [0] * 4  # clean labels are judged by


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_two_columns_are_enough(separator, tmp_path):
    rows = [separator.join((f"photos/{number}.png", str(10 if number % 2 else 2))) for number in range(12)]
    splits = read(file=write(tmp_path, [f"path{separator}label", *rows]), test_fraction=0.5)
    assert splits.train.classes == ("2", "10")
    assert sorted(reds(splits.train) + reds(splits.test)) == list(range(12))
    assert torch.bincount(splits.test.labels).tolist() == [3, 3]
    assert all(label == number % 2 for label, number in zip(splits.test.labels, reds(splits.test), strict=True))


def test_images_on_disk_have_the_same_labels(tmp_path):
    rows = [f"photos/{number}.png,{number % 2}" for number in range(12)]
    file = write(tmp_path, ["path,label", *rows], size=(9, 6))
    memory, disk = (read(file=file, image_size=4, storage=storage) for storage in ("memory", "disk"))
    assert torch.equal(memory.train.labels, disk.train.labels)
    assert [int(path.split("/")[1][:-4]) for path in disk.train.paths] == reds(memory.train)
    assert memory.train.shape == disk.train.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a,b"], "has an unknown column file"),
        (["path", "photos/1.png"], "no column label"),
        (["path,label", "photos/1.png,"], "line 2: 2 values are expected"),
        (["path,label", "photos/1.png,a,b"], "line 2: 2 values are expected"),
        (["path,label", "photos/1.png,a", "photos/99.png,a"], "line 3: there is no file"),
        (["path,label,split", "photos/1.png,a,holdout"], "line 2: split holdout is not known"),
        (["path,label,split", "photos/1.png,a,test"], "lists no training images"),
        (
            ["path,label,split", "labels.csv,a,train", "labels.csv,b,train", "labels.csv,b,test"],
            "cannot be read as an image",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_named(lines, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(file=write(tmp_path, lines))


def test_noisy_validation_labels_need_no_noise_model(tmp_path):
    file = write(tmp_path, ["path,label", *[f"photos/{number}.png,{number % 2}" for number in range(12)]])
    words = ["data=image_list", f"data.file={file}", "data.val_fraction=0.2", "data.val_labels=noisy"]
    assert config_of(*words).data.val_labels == "noisy"
    with pytest.raises(InputError, match="has no effect with noise=none"):
        config_of("data.val_fraction=0.2", "data.val_labels=noisy")


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_file_that_is_listed_several_times_has_its_pixels_each_time(storage, cache, tmp_path):
    numbers = [3, 1, 3, 3, 7, 1]
    rows = [f"photos/{number}.png,{label},train" for number, label in zip(numbers, "aabaab", strict=True)]
    file = write(tmp_path, ["path,label,split", *rows, "photos/2.png,a,test", "photos/2.png,b,test"])
    options = {"file": file, "image_size": 6, "storage": storage, "cache": str(tmp_path / "cache") if cache else False}
    train = read(**options).train
    if storage == "disk":
        images = [train.read_crop(index, lambda *size: CropBox(0, 0, *size)) for index in range(len(train))]
        train = ImageSet(torch.stack(images), train.labels, train.classes, train.clean_labels)
    assert (reds(train), train.labels.tolist()) == (numbers, [0, 0, 1, 0, 0, 1])


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_the_cache_keeps_the_images(storage, tmp_path, caplog):
    rows = [f"photos/{number}.png,{'dog' if number % 2 else 'cat'}" for number in range(12)]
    file, cache = write(tmp_path, ["path,label", *rows]), str(tmp_path / "cache")
    splits = image_list(file=file, storage=storage, cache=cache, image_size=6)
    assert splits.train.cache == cache
    if storage == "memory":
        caplog.set_level("INFO", "sam_runner")
        first = reds(splits.read().train)
        reading._read_all.cache_clear()
        assert reds(read(file=file, cache=cache, image_size=6).train) == first
        assert "12 images from data.cache" in caplog.text
    config = config_of("data=image_list", f"data.file={file}", f"data.cache={cache}")
    assert config.data.cache == cache
