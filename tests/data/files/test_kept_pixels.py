"""Decoded images in data.cache: the same batches as from the files, and when they are written and used."""

import errno
import logging
import os
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sam_runner.config.data import AugmentConfig
from sam_runner.data import reading
from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.files import kept_pixels
from sam_runner.data.files.kept_pixels import keep_pixels
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import IMAGENET_NORMALISATION
from sam_runner.utils.errors import InputError
from tests.data.files.test_jpeg import noisy_pixels
from tests.helpers import at_once

SIZE = 12
CROPS = AugmentConfig(flip=True, crop_scale_min=0.08)


def forget():
    for cached in (keep_pixels, kept_pixels._map_pixels, reading._check_all):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_of_other_tests():
    forget()


@pytest.fixture
def root(tmp_path):
    """JPEG and PNG files of different sizes: crops of some are decoded at a fraction of the size."""
    for part, label, number in product(("train", "test"), "ab", "0123"):
        folder = tmp_path / "set" / part / label
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "png" if number == "1" else "jpg"
        pixels = noisy_pixels(20 + 15 * int(number), 50 - 7 * int(number))
        Image.fromarray(pixels).convert("L" if number == "2" else "RGB").save(folder / f"{number}.{suffix}")
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded into the cache."""
    paths, read = [], kept_pixels.read_image
    monkeypatch.setattr(kept_pixels, "read_image", lambda path: paths.append(path) or read(path))
    return paths


@pytest.fixture(autouse=True)
def _log():
    logging.getLogger("sam_runner").setLevel(logging.INFO)


def load(root, cache):
    return image_folder(root=str(root), image_size=SIZE, storage="disk", cache=cache).read()


def batches(data, augmentation, num_workers=0):
    loader = ImageLoader(
        data, batch_size=3, normalisation=IMAGENET_NORMALISATION, device=torch.device("cpu"), seed=3,
        augmentation=augmentation, num_workers=num_workers,
    )  # fmt: skip
    return torch.cat([batch.images for epoch in range(4) for batch in loader.epoch(epoch)])


@pytest.mark.parametrize("augmentation", [None, CROPS, AugmentConfig(pad=2, policy="cifar10")])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_those_of_the_files(root, tmp_path, augmentation, num_workers):
    without, kept = load(root, False), load(root, str(tmp_path / "cache"))
    assert without.train.kept is None
    assert kept.train.kept is not None
    assert torch.equal(batches(kept.train, augmentation, num_workers), batches(without.train, augmentation))


def test_later_epochs_and_runs_decode_nothing(root, tmp_path, decoded, monkeypatch):
    """Except the boxes of JPEG files that are at least twice as large as the result: they are decoded reduced."""
    first = load(root, str(tmp_path / "cache"))
    assert sorted(decoded) == sorted(path for path in root.rglob("*") if path.is_file())
    decoded.clear()
    forget()
    second = load(root, str(tmp_path / "cache"))
    assert decoded == []
    read, read_crop = [], kept_pixels.read_crop

    def read_reduced(path, choose_box, size):
        box = choose_box(0, 0)
        read.append(min(box.height, box.width))
        return read_crop(path, choose_box, size)

    monkeypatch.setattr(kept_pixels, "read_crop", read_reduced)
    assert torch.equal(batches(first.train, CROPS), batches(second.train, CROPS))
    assert read and min(read) >= 2 * SIZE


def test_a_part_of_the_images_is_found_in_its_place(root, tmp_path):
    kept, without = load(root, str(tmp_path / "cache")).train, load(root, False).train
    chosen = torch.tensor([5, 0, 3])
    assert torch.equal(batches(kept.subset(chosen), None), batches(without.subset(chosen), None))


def test_a_file_that_changes_is_decoded_anew(root, tmp_path, decoded):
    load(root, str(tmp_path / "cache"))
    decoded.clear()
    forget()
    path = root / "train" / "a" / "0.jpg"
    Image.fromarray(255 - noisy_pixels(33, 22)).save(path)
    again = load(root, str(tmp_path / "cache"))
    assert path in decoded
    assert not any("test" in file.parts for file in decoded)
    forget()
    assert torch.equal(batches(again.train, None), batches(load(root, False).train, None))


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "index", "foreign"])
def test_a_damaged_entry_is_ignored_and_written_again(root, tmp_path, decoded, caplog, damage):
    expected = batches(load(root, False).train, CROPS)
    load(root, str(tmp_path / "cache"))
    for path in (tmp_path / "cache").glob("pixels-*.bin"):
        content = path.read_bytes()
        if damage == "flip":
            path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        elif damage == "truncate":
            path.write_bytes(content[:-1])
        elif damage == "missing":
            path.unlink()
        elif damage == "index":
            path.with_suffix(".pt").write_bytes(b"")
        else:
            reading.choose_cache(str(tmp_path / "cache")).write(path.with_suffix(".pt"), {"starts": 3})
    decoded.clear()
    forget()
    assert torch.equal(batches(load(root, str(tmp_path / "cache")).train, CROPS), expected)
    assert len(decoded) == 16
    assert caplog.text.count("is ignored") == 2
    decoded.clear()
    forget()
    assert torch.equal(batches(load(root, str(tmp_path / "cache")).train, CROPS), expected)
    assert decoded == []


@pytest.mark.parametrize("limit", ["memory", "disk", "bytes", "files"])
def test_images_that_do_not_fit_are_read_from_their_files(root, tmp_path, decoded, caplog, monkeypatch, limit):
    num_bytes = sum(3 * height * width for height, width in ((20, 50), (35, 43), (50, 36), (65, 29)) for _ in "ab")

    def set_room(room):
        if limit == "memory":
            monkeypatch.setattr(kept_pixels, "count_usable_memory", lambda: 2 * room)
        elif limit == "disk":
            monkeypatch.setattr(kept_pixels.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2 * room))
        elif limit == "bytes":
            monkeypatch.setattr(kept_pixels, "MAX_BYTES", room)
        else:
            monkeypatch.setattr(kept_pixels, "MAX_FILES", 8 if room == num_bytes else 7)

    set_room(num_bytes - 1)
    assert load(root, str(tmp_path / "cache")).train.kept is None
    assert decoded == []
    assert caplog.text.count("data.cache keeps no decoded images") == 2
    assert not list((tmp_path / "cache").glob("pixels-*"))
    set_room(num_bytes)
    forget()
    assert load(root, str(tmp_path / "cache")).train.kept is not None


def test_damage_within_a_file_is_found_before_training(root, tmp_path):
    path = root / "train" / "a" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[:300] + bytes(40) + content[340:])
    with pytest.raises(InputError, match=rf"^{path} cannot be read as an image"):
        load(root, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("pixels-*.[bp]*"))


def test_a_full_disk_is_reported_and_changes_nothing_else(root, tmp_path, caplog, monkeypatch):
    def is_full(handle, start, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", is_full)
    splits = load(root, str(tmp_path / "cache"))
    assert splits.train.kept is None
    assert caplog.text.count("cannot be written: [Errno 28] No space left on device") == 2
    assert not list((tmp_path / "cache").glob("pixels-*.[bp]*"))
    assert torch.equal(batches(splits.train, CROPS), batches(load(root, False).train, CROPS))


def read_logged(folder):
    """The messages and the images of a process."""
    messages, log = [], kept_pixels.log.info
    kept_pixels.log.info = lambda text, *values: messages.append(text) or log(text, *values)
    images = batches(load(folder / "set", str(folder / "cache")).train, CROPS)
    return sum("decoding" in message for message in messages), images


def test_of_processes_that_begin_together_one_decodes(root, tmp_path):
    (tmp_path / "cache").mkdir()
    found = at_once(read_logged, [tmp_path] * 3)
    assert sum(number for number, _ in found) == 2  # the training set and the test set
    expected = batches(load(root, False).train, CROPS)
    assert all(torch.equal(images, expected) for _, images in found)


def test_an_entry_that_another_process_has_half_written_is_not_decoded_again(root, tmp_path, monkeypatch):
    """The first look finds the tensors without their manifest, the second one the whole entry."""
    load(root, str(tmp_path / "cache"))
    forget()
    finds, find = [], kept_pixels._find
    manifests = {path: path.read_bytes() for path in (tmp_path / "cache").glob("pixels-*.json")}
    for path in manifests:
        path.unlink()

    def find_late(store, entry, num_images):
        finds.append(found := find(store, entry, num_images))
        for path, content in manifests.items():
            path.write_bytes(content)
        return found

    monkeypatch.setattr(kept_pixels, "_find", find_late)
    monkeypatch.setattr(kept_pixels, "_write", None)
    assert load(root, str(tmp_path / "cache")).train.kept is not None
    assert finds[0] is None and finds[1] is not None


def test_what_a_killed_process_left_is_removed(root, tmp_path):
    load(root, str(tmp_path / "cache"))
    (first, _) = (tmp_path / "cache").glob("pixels-*.bin")
    leftover = first.with_name(f"{first.name}.tmp.123")
    first.rename(leftover)
    forget()
    load(root, str(tmp_path / "cache"))
    assert first.is_file()
    assert not leftover.exists()


def test_an_entry_that_is_deleted_before_it_is_used_ends_the_run_with_a_message(root, tmp_path):
    splits = load(root, str(tmp_path / "cache"))
    splits.train.kept.path.unlink()
    with pytest.raises(InputError, match=r"of data\.cache cannot be read: No such file"):
        batches(splits.train, None)
