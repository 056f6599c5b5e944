"""data=hugging_face: folders that the library has written, compared with what was put in."""

import sys

import numpy as np
import pytest
from PIL import Image

from sam_runner.data.datasets.hugging_face import hugging_face
from sam_runner.utils.errors import InputError


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_images_of_a_saved_folder(library, tmp_path):
    kinds = library.Features(
        {"image": library.Image(), "id": library.Value("int64"), "label": library.ClassLabel(names=["b", "a"])}
    )
    images = [Image.new("RGB", (6, 4), (number, 0, 0)) for number in range(20)]
    labels = [number % 2 for number in range(20)]
    saved = library.Dataset.from_dict({"image": images, "id": range(20), "label": labels}, features=kinds)
    parts = {"train": saved, "validation": saved.select(range(4)), "test": saved.select(range(6))}
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    splits = hugging_face(root=str(tmp_path / "saved"))
    assert splits.train.images_NCHW[:, 0, 0, 0].tolist() == list(range(20))
    assert (splits.train.labels.tolist(), splits.train.classes, splits.train.shape) == (labels, ("b", "a"), (3, 4, 6))
    assert (len(splits.validation), len(splits.test)) == (4, 6)
    assert hugging_face(root=str(tmp_path / "saved"), image_size=3).train.shape == (3, 3, 3)
    saved.save_to_disk(str(tmp_path / "single"))
    single = hugging_face(root=str(tmp_path / "single"), test_fraction=0.5)
    assert (len(single.train), single.test.labels.bincount().tolist()) == (10, [5, 5])


@pytest.mark.parametrize("image_size", [None, 3])
def test_16_bit_images_keep_their_upper_bits(library, tmp_path, image_size):
    image = Image.fromarray(np.full((6, 6), 100 * 257, np.uint16))
    kinds = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["b", "a"])})
    saved = library.Dataset.from_dict({"image": [image] * 20, "label": [0, 1] * 10}, features=kinds)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert hugging_face(root=str(tmp_path / "saved"), image_size=image_size).train.images_NCHW.unique().tolist() == [
        100
    ]


def test_numbers_of_parquet_files(library, tmp_path):
    rows = {"x": [[float(number), 1.0] for number in range(12)], "kind": ["u", "v", "w"] * 4}
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        library.Dataset.from_dict(rows).to_parquet(str(tmp_path / "files" / f"{name}.parquet"))
    with pytest.raises(InputError, match="which column holds the labels"):
        hugging_face(root=str(tmp_path / "files"))
    splits = hugging_face(root=str(tmp_path / "files"), labels="kind")
    assert splits.train.inputs.tolist() == rows["x"]
    assert (splits.train.labels.tolist(), splits.test.classes) == ([0, 1, 2] * 4, ("u", "v", "w"))
    with pytest.raises(InputError, match="has no column nothing"):
        hugging_face(root=str(tmp_path / "files"), labels="kind", inputs="nothing")


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train-0", "test-0", "validation-0"), (1, 1, 1)),
        (("default/train/0000", "default/test/0000", "default/train/0001"), (2, 0, 1)),
        (("cifar_train", "cifar_val"), (1, 0, 1)),  # without test, validation is the test set
        (("latest-0", "interval-1", "contest"), (3, 0, 0)),  # words that contain val or tes are no splits
        (("trainset", "testset"), (1, 0, 1)),
        (("mnistTrain", "mnistTest", "training-1"), (2, 0, 1)),
        (("train-00000-of-00002", "train-00001-of-00002", "test-0", "test_ood-0"), (2, 0, 1)),
        (("train", "test", ".hidden/more", "a/.copy-of-train"), (1, 0, 1)),
        (("train.parquet/0", "test.parquet/0"), (1, 0, 1)),  # folders as Spark writes them
        (("data [1]/train", "data [1]/test"), (1, 0, 1)),  # no pattern
    ],
)
def test_parquet_files_are_of_the_split_that_their_name_says(library, tmp_path, caplog, names, sizes):
    caplog.set_level("INFO")
    rows = {"x": [[float(number)] for number in range(10)], "label": [0, 1] * 5}
    for name in names:
        library.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"{name}.parquet"))
    splits = hugging_face(root=str(tmp_path))
    assert f"parquet files: {sizes[0]} of train" in caplog.text
    train, validation, test = (10 * size for size in sizes)
    if not test:  # a fifth of the training examples
        train, test = train * 4 // 5, train // 5
    assert (len(splits.train), len(splits.validation or ()), len(splits.test)) == (train, validation, test)


def test_a_file_without_a_split_beside_others_is_refused(library, tmp_path):
    rows = {"x": [[1.0], [2.0]], "label": [0, 1]}
    for name in ("train-0", "test-0", "unsupervised-0"):
        library.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"{name}.parquet"))
    with pytest.raises(InputError, match=r"unsupervised-0\.parquet does not name one split"):
        hugging_face(root=str(tmp_path))


def test_other_splits_of_a_saved_folder(library, tmp_path, caplog):
    part = library.Dataset.from_dict({"x": [[float(number)] for number in range(6)], "label": [0, 1] * 3})
    parts = {"train": part, "val": part.select(range(2)), "unsupervised": part}
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    splits = hugging_face(root=str(tmp_path / "saved"), test_fraction=0.5)
    assert (len(splits.train), len(splits.test)) == (6, 2)
    assert "data.test_fraction=0.5 has no effect: the test set is the split validation" in caplog.text
    assert "the split unsupervised is not used" in caplog.text
    library.DatasetDict({**parts, "dev": part}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(InputError, match="several splits for validation: val, dev"):
        hugging_face(root=str(tmp_path / "two"))
    library.DatasetDict({**parts, "test": part, "test_ood": part.select([0])}).save_to_disk(str(tmp_path / "ood"))
    assert len(hugging_face(root=str(tmp_path / "ood")).test) == 6
    assert "the split test_ood is not used" in caplog.text
    parts["val"] = part.rename_column("label", "class")
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(InputError, match="validation has no column label"):
        hugging_face(root=str(tmp_path / "other"))


@pytest.mark.parametrize("saved", [True, False])
def test_classes_are_matched_by_name(library, tmp_path, saved):
    names = {"train": ["cat", "dog"], "test": ["dog", "cat"]}
    truth = ["cat", "cat", "dog", "cat"]
    parts = {
        split: library.Dataset.from_dict(
            {"x": [[1.0]] * 4, "label": [found.index(name) for name in truth]},
            features=library.Features(
                {"x": library.List(library.Value("float32")), "label": library.ClassLabel(names=found)}
            ),
        )
        for split, found in names.items()
    }
    if saved:
        library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    else:
        for split, part in parts.items():
            part.to_parquet(str(tmp_path / "saved" / f"{split}.parquet"))
    splits = hugging_face(root=str(tmp_path / "saved"))
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == splits.test.labels.tolist() == [0, 0, 1, 0]
    renamed = parts["test"].cast_column("label", library.ClassLabel(names=["wolf", "cat"]))
    library.DatasetDict({**parts, "test": renamed}).save_to_disk(str(tmp_path / "wolf"))
    with pytest.raises(InputError, match="test has classes that train does not have: wolf"):
        hugging_face(root=str(tmp_path / "wolf"))


@pytest.mark.parametrize("saved", [True, False])
def test_an_empty_split_is_refused_with_the_cause(library, tmp_path, saved):
    parts = [library.Dataset.from_dict({"x": [[1.0, 2.0]] * n, "label": [0, 1][:n]}) for n in (2, 0)]
    if saved:
        library.DatasetDict(zip(("train", "test"), parts, strict=True)).save_to_disk(str(tmp_path / "files"))
    else:
        for name, part in zip(("train", "test"), parts, strict=True):
            part.to_parquet(str(tmp_path / "files" / f"{name}.parquet"))
    with pytest.raises(InputError, match="each split needs at least one example"):
        hugging_face(root=str(tmp_path / "files"))


def test_folders_that_cannot_be_used_are_named(library, tmp_path):
    with pytest.raises(InputError, match="holds no data set"):
        hugging_face(root=str(tmp_path))
    library.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(str(tmp_path / "texts"))
    with pytest.raises(InputError, match="tokenise them first"):
        hugging_face(root=str(tmp_path / "texts"))
    library.Dataset.from_dict({"x": [1, 2], "y": [1, 2], "label": [0, 1]}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(InputError, match="to one of x, y"):
        hugging_face(root=str(tmp_path / "two"))


def test_without_the_library_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'sam-runner\[hugging_face\]'"):
        hugging_face(root=str(tmp_path))
