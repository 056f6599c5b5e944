"""Folders of images as people have them: which file is in which split and class, and what is left out."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sam_runner.data.datasets.folder_layout import find_layout, natural_key
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.files.decode import read_image
from sam_runner.utils.errors import InputError


def encode(number, kind="PNG"):
    """A 4x4 image of one grey level, as the bytes of a file."""
    target = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number % 256, np.uint8)).save(target, format=kind)
    return target.getvalue()


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(len(path.name)) if content is None else content)


def write_classes(folder, classes="ab", names=("1.png", "2.png")):
    for name in classes:
        for file in names:
            write(folder / name / file)


def layout_of(root):
    """Paths by split, and the classes."""
    found = find_layout(str(root))
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    return {name: part and part.paths for name, part in parts.items()}, found


def message_of(root):
    with pytest.raises(InputError) as caught:
        find_layout(str(root))
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Test"), ("train", "valid"), ("TRAIN", "VALIDATION"), ("train", "Testing"), ("Train", "Val"),
        ("training_set", "test_set"), ("seg_train", "seg_test"), ("train2017", "val2017"), ("my-Train", "my-Valid"),
        ("trainset", "testset"), ("Train_Images", "TestImages"), ("train", "dev"), ("train", "eval"),
    ],
)  # fmt: skip
def test_names_of_the_split_folders(tmp_path, train, test):
    write_classes(tmp_path / train, names=["1.png", "2.png"])
    write_classes(tmp_path / test, names=["3.png"])
    parts, found = layout_of(tmp_path)
    assert found.classes == ("a", "b")
    assert parts == {
        "train": [f"{train}/{name}/{file}.png" for name in "ab" for file in "12"],
        "validation": None,
        "test": [f"{test}/{name}/3.png" for name in "ab"],
    }


@pytest.mark.parametrize("val", ["val", "Valid", "validation"])
def test_val_beside_test_is_the_validation_set(tmp_path, val):
    for part in ("train", val, "test"):
        write_classes(tmp_path / part)
    splits = image_folder(root=str(tmp_path)).read()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 4, 4]
    assert layout_of(tmp_path)[0]["validation"] == [f"{val}/{name}/{file}.png" for name in "ab" for file in "12"]


def test_val_beside_a_test_folder_without_classes_is_the_test_set(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val")
    write(tmp_path / "test" / "unlabelled.png")
    parts, found = layout_of(tmp_path)
    assert (parts["validation"], len(parts["test"])) == (None, 4)
    assert found.left_out.counts == {"folders without class folders": 1}


@pytest.mark.parametrize("names", [("train", "car", "bus"), ("bullet_train", "test_tube"), ("val", "vol", "veil")])
def test_classes_may_be_called_like_a_split(tmp_path, names):
    write_classes(tmp_path, names)
    parts, found = layout_of(tmp_path)
    assert (found.classes, parts["test"]) == (tuple(sorted(names)), None)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["train/a/1.png", "Train/a/1.png"], "two folders of one split"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "val and valid, two folders"),
        (["test/a/1.png", "test/b/1.png"], "but no train folder"),
        (["train/1.png", "test/1.png"], "train has no class folders"),
        (["train/1.png", "test/1.png", "masks/1.png"], "train has no class folders"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "splits inside classes are not read"),
        (["set/cat/1.png", "set/dog/1.png"], "set, which holds folders"),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
            "does not have: c; only the training set has: b",
        ),
        (["train/a/1.png", "train/b/1.png", "val/A/1.png"], "does not have: A; only the training set has: a, b"),
        (["train/a/1.png", "train/b/1.png", "holdout/a/1.png"], "holdout has classes of the training set"),
        (["art/a/1.png", "art/b/1.png", "photo/a/1.png", "photo/b/1.png"], "art and photo all have the folders a, b"),
    ],
)
def test_layouts_that_are_not_clear_are_refused(tmp_path, paths, words):
    for path in paths:
        write(tmp_path / path)
    assert words in message_of(tmp_path)


def test_two_splits_that_are_one_folder_are_refused(tmp_path):
    write_classes(tmp_path / "train")
    (tmp_path / "test").symlink_to("train")
    assert "are the same folder" in message_of(tmp_path)


def test_a_class_may_be_missing_in_the_test_set(tmp_path):
    write_classes(tmp_path / "train", "abc")
    write_classes(tmp_path / "test", "ac")
    (tmp_path / "test" / "b").mkdir()
    assert find_layout(str(tmp_path)).test.labels == [0, 0, 2, 2]


def test_the_same_folders_inside_all_classes_belong_to_them(tmp_path):
    """If the classes are known: they are in a training folder, or hold images themselves."""
    for name in ("train/day/a", "train/day/b", "train/night/a", "train/night/b"):
        write(tmp_path / name / "1.png")
    assert find_layout(str(tmp_path)).classes == ("day", "night")
    write(tmp_path / "train" / "day" / "1.png")
    assert find_layout(str(tmp_path / "train")).train.labels == [0, 0, 0, 1, 1]


def test_images_beside_the_folders_of_the_splits_are_counted(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    write(tmp_path / "cover.png")
    write(tmp_path / "train" / "cover.png")
    assert find_layout(str(tmp_path)).left_out.counts == {"images outside the class folders": 2}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails"])
@pytest.mark.parametrize("place", ["a", "a/inner", "", "../train", "../test/b", ".."])
def test_hidden_folders_are_never_read(tmp_path, hidden, place):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    before, _ = layout_of(tmp_path)
    write(tmp_path / "train" / place / hidden / "1-checkpoint.png")
    assert layout_of(tmp_path)[0] == before
    assert find_layout(str(tmp_path)).left_out.counts == {"hidden": 1}


def test_files_of_every_kind_are_read_or_counted_by_reason(tmp_path):
    for number, kind in enumerate(["PNG", "TIFF", "GIF", "WEBP", "BMP", "JPEG", "PPM"]):
        write(tmp_path / "a" / f"{number}.{kind.lower()}", encode(number * 30, kind))
        write(tmp_path / "a" / f"plain{number}", encode(number * 30, kind))  # no suffix
        write(tmp_path / "a" / f"frame.{number:04d}", encode(number * 30, kind))  # a number for a suffix
    write(tmp_path / "b" / "inner" / "deep" / "1.PNG")
    write(tmp_path / "elsewhere.txt", encode(7))
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "b" / "more").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    write(tmp_path / "b" / "notes.txt", b"text")
    write(tmp_path / "b" / "photo.heic", b"ftypheic")
    write(tmp_path / "b" / "README", b"text")
    write(tmp_path / "loose.png")
    parts, found = layout_of(tmp_path)
    assert len([path for path in parts["train"] if path.startswith("a/")]) == 21
    assert len([path for path in parts["train"] if path.startswith("b/more/")]) == 21
    assert {"b/inner/deep/1.PNG", "b/link.png"} < set(parts["train"])
    assert found.left_out.counts == {
        "broken links": 1, "special files": 1, "links to a folder above": 1, ".txt: no accepted image format": 1,
        ".heic: no accepted image format": 1, "without a suffix: no accepted image format": 1,
        "images outside the class folders": 1,
    }  # fmt: skip
    assert "1 .heic: no accepted image format (b/photo.heic)" in str(found.left_out)


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_several_frames_give_the_first(tmp_path, kind):
    frames = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (60, 200)]
    frames[0].save(tmp_path / "x", format=kind, save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x").unique().tolist() == [60]


@pytest.mark.parametrize(("dtype", "words"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_numbers_without_a_range_are_refused(tmp_path, dtype, words):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=words):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("pattern", ["{}.jpg", "img_{}.png", "{}", "a{}b7.png", "sub{}/x.png", "01-{}.png"])
def test_numbers_in_names_are_sorted_as_numbers(tmp_path, pattern):
    names = [pattern.format(number) for number in range(1, 121)]
    assert sorted(sorted(names), key=natural_key) == names


def test_classes_named_by_numbers_keep_their_labels(tmp_path):
    write_classes(tmp_path, [str(number) for number in range(12)], ["1.png"])
    assert find_layout(str(tmp_path)).classes == tuple(str(number) for number in range(12))


def test_names_that_are_no_utf8_are_read(tmp_path):
    name = os.fsdecode(b"kl\xe4sse")
    write_classes(tmp_path, ["a", name])
    splits = image_folder(root=str(tmp_path), test_fraction=0.5).read()
    assert splits.train.classes == ("a", name)
    assert splits.digest() == splits.digest()


KINDS = {
    "image": "{}.png", "capital": "{}.JPG", "tif": "{}.tif", "gif": "{}.gif", "bare": "{}", "odd": "{}.v2",
    "deep": "x/y/{}.png", "link": "{}.png", "linked": "d{}", "hidden": ".{}.png", "cache": ".cache/{}.png",
    "thumbnail": "@eaDir/{}.png", "text": "{}.txt", "broken": "{}.png", "heic": "{}.heic",
}  # fmt: skip
READ = {"image", "capital", "tif", "gif", "bare", "odd", "deep", "link", "linked"}
FORMAT_OF = {"capital": "JPEG", "tif": "TIFF", "gif": "GIF"}
awkward_class = st.lists(st.sampled_from(sorted(KINDS)), max_size=6)
awkward_part = st.tuples(awkward_class, awkward_class)


def put(folder, kind, number, aside):
    """Write one file of the kind; return the path that is read for it, None for one that is left out."""
    path = folder / KINDS[kind].format(number)
    if kind in ("link", "linked"):
        target = aside / f"{len(list(aside.iterdir()))}"
        write(target / "1.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target / "1.png" if kind == "link" else target)
        return path if kind == "link" else path / "1.png"
    if kind == "broken":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("nowhere")
        return None
    write(path, b"text" if kind in ("text", "heic") else encode(number, FORMAT_OF.get(kind, "PNG")))
    return path if kind in READ else None


@settings(max_examples=60, deadline=None)
@given(
    train=awkward_part,
    val=st.none() | awkward_part,
    test=st.none() | awkward_part,
    names=st.tuples(
        st.sampled_from(["train", "Training", "TRAIN"]),
        st.sampled_from(["val", "Valid", "validation"]),
        st.sampled_from(["test", "Testing", "TEST"]),
    ),
    classes=st.sampled_from([("cat", "dog"), ("2", "10"), ("train", "test"), ("é", "Z z")]),
)
def test_awkward_folders_are_read_as_a_plain_reading_has_them(train, val, test, names, classes):
    with tempfile.TemporaryDirectory() as folder:
        root, aside = Path(folder, "root"), Path(folder, "aside")
        aside.mkdir()
        expected = {}
        for name, part in zip(names, (train, val, test), strict=True):
            if part is None:
                continue
            expected[name] = []
            for label, (inner, kinds) in enumerate(zip(classes, part, strict=True)):
                (root / name / inner).mkdir(parents=True)
                for number, kind in enumerate(["image", *kinds], 1):
                    path = put(root / name / inner, kind, number, aside)
                    if path is not None:
                        expected[name].append((path.relative_to(root).as_posix(), label))
        found = find_layout(str(root))
        parts = [found.train, found.validation, found.test]
        if names[1] in expected and names[2] not in expected:
            parts = [found.train, found.test, found.validation]
        order = [classes.index(name) for name in found.classes]
        for name, part in zip(names, parts, strict=True):
            if name not in expected:
                assert part is None
                continue
            read = list(zip(part.paths, [order[label] for label in part.labels], strict=True))
            assert sorted(read) == sorted(expected[name])
            assert part.labels == sorted(part.labels)
        num_written = sum(len(["", *kinds]) for part in (train, val, test) if part is not None for kinds in part)
        num_read = sum(len(part) for part in expected.values())
        assert (num_read == num_written) == (not found.left_out.counts)
