"""Image files that are read into memory: which ones, what is said of those that cannot be read, and the cache."""

import itertools
import logging
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_runner.data import noise, reading
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.files import in_threads
from sam_runner.data.normalisation import Normalisation
from sam_runner.data.splits import prepare_splits
from sam_runner.utils.errors import InputError
from tests.data.datasets.test_image_folder import nhwc_pixels, random_pixels, write_classes, write_image
from tests.helpers import at_once, invoke


@pytest.fixture(autouse=True)
def _no_sets_of_other_tests():
    reading._read_all.cache_clear()
    reading._check_all.cache_clear()


@pytest.fixture
def read_paths(monkeypatch):
    """The files that are decoded, in any order."""
    paths, read = [], reading.read_image
    monkeypatch.setattr(reading, "read_image", lambda path: paths.append(path) or read(path))
    return paths


def prepare(root, *, num_workers=1, cache=False, **options):
    splits = image_folder(root=str(root), num_workers=num_workers, cache=cache)
    return prepare_splits(splits, noise.none, needs="labels", seed=0, **options)


def equal(first, second):
    parts = [(first.train, second.train), (first.test, second.test)]
    return all(torch.equal(a.images_NCHW, b.images_NCHW) and torch.equal(a.labels, b.labels) for a, b in parts)


def test_only_the_images_of_a_run_are_read(tmp_path, read_paths):
    pixels = write_classes(tmp_path / "train", {"a": 20, "b": 30})
    write_classes(tmp_path / "test", {"a": 2, "b": 2})
    splits = prepare(tmp_path, val_fraction=0.2, train_fraction=0.1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 10, 4)
    assert len(set(read_paths)) == 4 + 10 + 4
    everything = {image.tobytes(): name for name, images in pixels.items() for image in images}
    for part in (splits.train, splits.validation):
        for image, label in zip(nhwc_pixels(part), part.labels.tolist(), strict=True):
            assert everything[image.tobytes()] == part.classes[label]


def test_noise_that_needs_images_gets_those_of_the_run(tmp_path):
    write_classes(tmp_path / "train", {"a": 20, "b": 20})
    write_classes(tmp_path / "test", {"a": 2, "b": 2})
    model = partial(noise.instance, rate=0.4)
    splits = prepare_splits(image_folder(root=str(tmp_path)), model, needs="images", seed=0, train_fraction=0.5)
    assert len(splits.train) == 20
    assert 0 < int((splits.train.labels != splits.train.clean_labels).sum()) < 20


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("small", [True, False])
def test_all_images_that_cannot_be_used_are_in_one_message(tmp_path, monkeypatch, workers, small):
    """No header, an empty file, a truncated image, another size: in both sets, also the first file."""
    monkeypatch.setattr(in_threads, "SMALL_FILE_BYTES", 1 << 20 if small else 0)
    for part in ("train", "test"):
        write_classes(tmp_path / part, {"a": 6, "b": 6})
    (tmp_path / "train/a/000.png").write_text("no image")
    (tmp_path / "train/b/003.png").write_bytes(b"")
    large = random_pixels(0, 60, 50)
    write_image(tmp_path / "test/a/002.png", large)
    content = (tmp_path / "test/a/002.png").read_bytes()
    (tmp_path / "test/a/002.png").write_bytes(content[: len(content) // 2])
    write_image(tmp_path / "train/b/005.png", random_pixels(0, 7, 9))
    with pytest.raises(InputError) as caught:
        image_folder(root=str(tmp_path), num_workers=workers).read()
    first, *lines = str(caught.value).splitlines()
    assert first == "4 of 24 images cannot be used:"
    found = {line.split()[0]: line.strip() for line in lines[:4]}
    assert found.keys() == {
        str(tmp_path / name) for name in ("train/a/000.png", "train/b/003.png", "test/a/002.png", "train/b/005.png")
    }
    assert "its content is no image" in found[str(tmp_path / "train/a/000.png")]
    assert "it is empty" in found[str(tmp_path / "train/b/003.png")]
    assert found[str(tmp_path / "train/b/005.png")].endswith("is 9x7 pixels, 001.png is 5x6")
    assert set(lines[4:]) == {
        "  remove it or replace it", "  set data.image_size to resize all images to one size"
    }  # fmt: skip


def test_more_faults_than_a_message_holds_are_in_the_log(tmp_path, caplog):
    write_classes(tmp_path, {"a": 20, "b": 20})
    bad = [tmp_path / "a" / f"{number:03d}.png" for number in range(15)]
    for path in bad:
        path.write_bytes(b"")
    with pytest.raises(InputError, match="15 of 40 images cannot be used") as caught:
        image_folder(root=str(tmp_path)).read()
    assert "and 5 more; the lines above name all of them" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 18
    assert all(any(str(path) in message for message in caplog.messages) for path in bad)


def test_a_set_of_many_sizes_is_refused_in_two_lines_before_it_is_decoded(tmp_path, read_paths):
    write_classes(tmp_path, {"a": 20, "b": 20})
    for number in range(15):
        write_image(tmp_path / "a" / f"{number:03d}.png", random_pixels(0, 10 + number, 9))
    with pytest.raises(InputError) as caught:
        image_folder(root=str(tmp_path)).read()
    assert read_paths == []
    message, hint = str(caught.value).splitlines()
    assert " is 9x" in message
    assert hint == "  set data.image_size to resize all images to one size"


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize(("brightest", "levels"), [(255, "one level only"), (4095, "16 levels only"), (65535, None)])
def test_16_bit_grey_that_loses_its_levels_is_warned_of(tmp_path, caplog, monkeypatch, storage, brightest, levels):
    """Scans of 12 bits in files of 16: the upper eight bits have 16 levels, and of 8 bits all pixels are black."""
    monkeypatch.setattr(logging.getLogger("sam_runner"), "propagate", True)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            ramp = np.linspace(0, brightest, 64).astype(np.uint16).reshape(8, 8)
            Image.fromarray(ramp).save(tmp_path / name / f"{number}.png")
    image_folder(root=str(tmp_path), image_size=8, storage=storage).read()
    warned = [message for message in caplog.messages if message.startswith("the brightest pixel of the 16-bit grey")]
    assert len(warned) == (levels is not None)
    assert all(f"is {brightest} of 65535" in message and f"have {levels}\n" in message for message in warned)


def test_the_cache_gives_the_same_images_without_reading_the_files(tmp_path, read_paths):
    write_classes(tmp_path / "set" / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "set" / "test", {"a": 2, "b": 2})
    cache = str(tmp_path / "cache")
    without = prepare(tmp_path / "set", train_fraction=0.5)
    reading._read_all.cache_clear()
    written = prepare(tmp_path / "set", cache=cache, train_fraction=0.5)
    read_paths.clear()
    reading._read_all.cache_clear()
    from_cache = prepare(tmp_path / "set", cache=cache, train_fraction=0.5)
    assert read_paths == []
    assert equal(without, written)
    assert equal(without, from_cache)
    assert without.digest() == from_cache.digest()
    reading._read_all.cache_clear()
    others = prepare(tmp_path / "set", cache=cache)  # the test set is in the cache, this training set is not
    assert len(set(read_paths)) == 20
    assert others.digest() == prepare(tmp_path / "set").digest()


@pytest.mark.parametrize("change", ["content", "time", "size of the images", "crop"])
def test_a_change_of_files_or_options_is_not_answered_from_the_cache(tmp_path, change):
    pixels = write_classes(tmp_path / "set", {"a": 5, "b": 5})
    path = tmp_path / "set" / "a" / "000.png"
    options = {"root": str(tmp_path / "set"), "cache": str(tmp_path / "cache"), "test_fraction": 0.2}
    image_folder(**options).read()
    reading._read_all.cache_clear()
    if change == "content":
        write_image(path, 255 - pixels["a"][0])
        os.utime(path, ns=(0, 12345))
    elif change == "time":
        os.utime(path, ns=(0, 12345))
    else:
        options |= {"image_size": 4} | ({"eval_crop_ratio": 0.5} if change == "crop" else {})
    before = len(list((tmp_path / "cache").glob("images-*.pt")))
    again = image_folder(**options).read()
    reading._read_all.cache_clear()
    assert len(list((tmp_path / "cache").glob("images-*.pt"))) > before
    expected = image_folder(**(options | {"cache": False})).read()
    assert equal(again, expected)


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "foreign", "other shape"])
def test_a_damaged_entry_is_read_anew_and_repaired(tmp_path, damage, caplog, read_paths):
    write_classes(tmp_path / "set", {"a": 5, "b": 5})
    options = {"root": str(tmp_path / "set"), "cache": str(tmp_path / "cache"), "test_fraction": 0.2}
    expected = image_folder(**options).read()
    for path in (tmp_path / "cache").glob("images-*.pt"):
        content = path.read_bytes()
        if damage == "flip":
            path.write_bytes(content[:-900] + bytes([content[-900] ^ 1]) + content[-899:])
        elif damage == "truncate":
            path.write_bytes(content[:100])
        elif damage == "no manifest":
            path.with_suffix(".json").unlink()
        elif damage == "foreign":
            path.with_suffix(".json").write_text('"a"')
        else:
            reading.choose_cache(options["cache"]).write(path, {"images": torch.zeros(1, 3, 6, 5)})
    for _ in range(2):
        read_paths.clear()
        reading._read_all.cache_clear()
        assert equal(image_folder(**options).read(), expected)
        assert ("is ignored" in caplog.text) == (damage not in ("no manifest", "other shape"))
    assert read_paths == []  # the second time


def test_a_cache_that_cannot_be_written_changes_nothing_else(tmp_path, caplog):
    pixels = write_classes(tmp_path / "set", {"a": 5, "b": 5})
    (tmp_path / "file").write_text("")
    splits = image_folder(root=str(tmp_path / "set"), cache=str(tmp_path / "file"), test_fraction=0.5).read()
    both = sorted(image.tobytes() for part in (splits.train, splits.test) for image in nhwc_pixels(part))
    assert both == sorted(image.tobytes() for images in pixels.values() for image in images)
    assert "cannot be written" in caplog.text


def read_five_times(folder):
    for _ in range(5):
        digest = image_folder(root=str(folder / "set"), cache=str(folder / "cache")).read().digest()
    return digest


def test_processes_that_fill_a_cache_at_once_read_the_same(tmp_path):
    write_classes(tmp_path / "set", {"a": 40, "b": 40})
    digests = at_once(read_five_times, [tmp_path] * 3)
    assert digests == [image_folder(root=str(tmp_path / "set")).read().digest()] * 3
    assert not list((tmp_path / "cache").glob("*.tmp.*"))
    assert len(list((tmp_path / "cache").glob("images-*.pt"))) == 2


def write_photos(root, num_images=6):
    """Images of 40x40 pixels, (root/train and root/test)/(a and b); half of them JPEG, half PNG."""
    for part, name, number in itertools.product(("train", "test"), "ab", range(num_images)):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        suffix = "jpg" if number % 2 else "png"
        Image.fromarray(random_pixels(number, 40, 40)).save(root / part / name / f"{number}.{suffix}")
    return root


def damage(path, kind):
    """Make an image file unreadable; "within" leaves its header and its end."""
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes(byte ^ 255 for byte in content[middle : middle + 20])
    contents = {
        "empty": b"",
        "text": b"no image",
        "truncated": content[:middle],
        "within": content[:middle] + flipped + content[middle + 20 :],
    }
    path.write_bytes(contents[kind])


def test_files_that_stay_on_disk_are_checked_before_training_with_one_message(tmp_path, monkeypatch, capsys):
    root = write_photos(tmp_path / "set")
    kinds = {
        "train/a/0.png": "truncated",
        "train/b/1.jpg": "truncated",
        "train/b/3.jpg": "empty",
        "test/a/2.png": "text",
    }
    for name, kind in kinds.items():
        damage(root / name, kind)
    words = [f"data.root={root}", "data.image_size=8", "data.storage=disk", "data.num_workers=0", "device=cpu"]
    done = invoke(monkeypatch, capsys, tmp_path, "data=image_folder", *words, "batch_size=2", "run_dir=run")
    assert done.returncode == 2
    assert "4 of 24 images cannot be used:" in done.stderr
    assert all(done.stderr.count(f"{root / name} cannot be read as an image") == 1 for name in kinds)
    assert done.stderr.count("remove it or replace it") == 1
    assert "epoch" not in done.stdout and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_images_that_are_damaged_within_are_in_one_message_if_the_statistics_need_them(tmp_path):
    root = write_photos(tmp_path)
    for name in ("train/a/0.png", "train/b/4.png", "test/a/0.png"):
        damage(root / name, "within")
    splits = image_folder(root=str(root), image_size=8, storage="disk").read()  # header and end are in order
    with pytest.raises(InputError) as caught:
        Normalisation.from_set(splits.train)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 12 images cannot be used:"
    assert [line.split()[0] for line in lines[:2]] == [str(root / "train/a/0.png"), str(root / "train/b/4.png")]


def test_only_the_files_of_a_run_are_checked(tmp_path):
    root = write_photos(tmp_path, 20)
    options = {"root": str(root), "image_size": 8, "storage": "disk"}
    used = prepare_splits(image_folder(**options), noise.none, needs="labels", seed=0, train_fraction=0.25).train
    bad = next(path for path in image_folder(**options).train.paths if path not in used.paths)
    damage(root / bad, "empty")
    again = prepare_splits(image_folder(**options), noise.none, needs="labels", seed=0, train_fraction=0.25).train
    assert again.paths == used.paths
    reading._check_all.cache_clear()
    with pytest.raises(InputError, match=f"{bad} cannot be read as an image: it is empty"):
        image_folder(**options).read()


def test_of_very_many_files_the_same_part_is_checked_in_every_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading, "MAX_CHECKED", 10)
    splits = image_folder(root=str(write_photos(tmp_path)), image_size=8, storage="disk")
    seen, check = [], reading.check_image
    monkeypatch.setattr(reading, "check_image", lambda path: seen.append(path) or check(path))
    parts = []
    for _ in range(2):
        reading._check_all.cache_clear()
        splits.read()
        parts.append(sorted(seen))
        seen.clear()
    assert parts[0] == parts[1] and len(set(parts[0])) == 10
    assert {Path(path).relative_to(tmp_path).parts[0] for path in parts[0]} == {"train", "test"}
    assert "10 of 24 image files are checked" in caplog.text


def test_files_are_checked_once_if_there_is_a_cache(tmp_path, monkeypatch):
    root, cache = write_photos(tmp_path / "set"), str(tmp_path / "cache")
    seen, check = [], reading.check_image
    monkeypatch.setattr(reading, "check_image", lambda path: seen.append(path) or check(path))

    def read_again():
        seen.clear()
        reading._check_all.cache_clear()
        image_folder(root=str(root), image_size=8, storage="disk", cache=cache).read()
        return len(seen)

    assert [read_again(), read_again()] == [24, 0]
    path = root / "train" / "a" / "0.png"
    os.utime(path, ns=(0, 12345))
    assert [read_again(), read_again()] == [24, 0]
    path.write_bytes(path.read_bytes()[:500])
    for _ in range(2):  # a fault is not kept
        with pytest.raises(InputError, match=rf"^{path} cannot be read"):
            read_again()


def test_true_is_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_classes(tmp_path / "set", {"a": 5, "b": 5})
    image_folder(root=str(tmp_path / "set"), cache=True).read()
    assert list((tmp_path / "home" / "sam_runner").glob("images-*.pt"))


def test_images_keep_their_place_among_faultless_neighbours(tmp_path):
    pixels = write_classes(tmp_path, {"a": 300, "b": 300})
    splits = image_folder(root=str(tmp_path), num_workers=4, test_fraction=0.5).read()
    by_class = {name: {image.tobytes() for image in images} for name, images in pixels.items()}
    for image, label in zip(nhwc_pixels(splits.train), splits.train.labels.tolist(), strict=True):
        assert np.ascontiguousarray(image).tobytes() in by_class[splits.train.classes[label]]
