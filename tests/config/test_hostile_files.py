"""Files of strangers that hold data or settings: whatever is in them, nothing of it runs or lands elsewhere.

Checkpoints: tests/training/test_checkpoints.py. Configuration files: tests/config/test_hydra_guard.py.
"""

import io
import os
import pickle
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_runner.data.datasets.restricted_pickle import load_pickle, load_pickle_file
from sam_runner.utils.errors import InputError
from tests.data.datasets.test_cifar import (
    BATCHES,
    file_contents,
    random_files,
    write_dataset,
    write_labels_file,
    write_tar,
)
from tests.helpers import invoke
from tests.training.test_checkpoints import Exploit


class System:
    """Calls a function of another module."""

    def __init__(self, module, name, *arguments):
        self.call, self.arguments = getattr(__import__(module), name), arguments

    def __reduce__(self):
        return self.call, self.arguments


def memo_bomb():
    return b"\x80\x02}r" + struct.pack("<I", 0x7FFFFFF0) + b"."


def frame_bomb():
    return b"\x80\x05\x95" + struct.pack("<Q", 1 << 40) + b"}."


def bytearray_bomb():
    return b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"}."


def deep():
    return b"\x80\x02" + b"(" * 3 + b"]" * 100_000 + b"a" * 99_999 + b"."


def objects_array():
    return pickle.dumps({"data": np.array([Exploit("x")], dtype=object)}, protocol=2)


def overwritten_name():
    """Sets an attribute of a function that the reader gives out."""
    return b"\x80\x02c_codecs\nencode\n(U\x0c__defaults__(K\x01ttb."


def hidden_by_frames():
    """The scanner reads on where the unpickler leaves the frame: only one of them takes the memo's entry for text."""
    hidden = b"0}r" + struct.pack("<I", 50_000_000) + b"."
    return b"\x80\x04\x95" + struct.pack("<Q", 2) + b"M\x01\x02CN" + hidden + b" " * (78 - len(hidden)) + b"0}."


def encoded_again_and_again():
    once = b"h\x00h\x01R0"
    start = b"\x80\x02c_codecs\nencode\nq\x000(X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"X\x06\x00\x00\x00latin1tq\x010"
    return start + once * 2000 + b"}."


PICKLES = {
    "hidden by frames": lambda marker: hidden_by_frames(),
    "memory by encoding": lambda marker: encoded_again_and_again(),
    "a nested key": lambda marker: b"\x80\x02})" + b"\x85" * 1_000_000 + b"Nu.",
    "sets": lambda marker: b"\x80\x04(" + b"\x8f" * 500_000 + b"l.",
    "open": lambda marker: pickle.dumps({"labels": Exploit(marker)}, protocol=2),
    "system": lambda marker: pickle.dumps(System("posix", "system", f"touch {marker}"), protocol=2),
    "eval, protocol 0": lambda marker: f"c__builtin__\neval\n(V__import__('os').mkdir('{marker}')\ntR.".encode(),
    "eval, protocol 4": lambda marker: pickle.dumps(System("builtins", "eval", f"open('{marker}', 'w')"), protocol=4),
    "instance": lambda marker: f"(V__import__('os').mkdir('{marker}')\ni__builtin__\neval\n.".encode(),
    "numpy loads": lambda marker: f"cnumpy\nload\n(V{marker}\nI01\ntR.".encode(),
    "torch loads": lambda marker: f"ctorch\nload\n(V{marker}\ntR.".encode(),
    "persistent": lambda marker: b"\x80\x02X\x04\x00\x00\x00fileQ.",
    "extension": lambda marker: b"\x80\x02\x82\x01.",
    "objects in an array": lambda marker: objects_array(),
    "a name overwritten": lambda marker: overwritten_name(),
    "memory by memo": lambda marker: memo_bomb(),
    "memory by frame": lambda marker: frame_bomb(),
    "memory by bytearray": lambda marker: bytearray_bomb(),
    "nested deeply": lambda marker: deep(),
    "no dictionary": lambda marker: pickle.dumps([1, 2], protocol=2),
    "text": lambda marker: b"<html>not found</html>",
    "empty": lambda marker: b"",
}


def in_torch_file(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
    return stream.getvalue()


def refused(done, marker, folder, *left):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 20
    assert len(done.stderr) < 3000
    assert not marker.exists()
    assert sorted(os.listdir(folder)) == sorted(left)


@pytest.mark.parametrize(
    "place",
    [
        "batch",
        *(pytest.param(at, marks=pytest.mark.slow) for at in ("batch in archive", "labels", "labels in torch file")),
    ],
)
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_runs_nothing_wherever_it_lies(name, place, tmp_path, monkeypatch, capsys):
    marker, work = tmp_path / "ran", tmp_path / "work"
    work.mkdir()
    evil, parts = PICKLES[name](marker), random_files("cifar10")
    arguments = ["data=cifar10", f"data.root={tmp_path}", "batch_size=20"]
    if place.startswith("batch"):
        files = file_contents("cifar10", "python 2", parts) | {"data_batch_2": evil}
        if place == "batch":
            write_dataset(tmp_path, "cifar10", "python 2", parts)
            (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(evil)
        else:
            members = {f"cifar-10-batches-py/{file}": content for file, content in files.items()}
            write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    else:
        write_dataset(tmp_path, "cifar10", "binary", parts)
        (tmp_path / "human.pt").write_bytes(evil if place == "labels" else in_torch_file(evil))
        arguments += ["noise=human", f"noise.file={tmp_path}/human.pt"]
    started = time.perf_counter()
    done = invoke(monkeypatch, capsys, work, *arguments)
    refused(done, marker, work)
    assert ("data_batch_2" if place.startswith("batch") else "human.pt") in done.stderr
    assert time.perf_counter() - started < 5


def test_the_exploits_are_real(tmp_path):
    """The pickles that the test above refuses run code when they are unpickled; otherwise that test shows nothing."""
    for name in ("open", "system", "eval, protocol 0", "eval, protocol 4", "instance"):
        marker = tmp_path / name.replace(", ", "-").replace(" ", "-")
        pickle.loads(PICKLES[name](marker))
        assert marker.exists(), name


ARCHIVES = {
    "out of the folder": {"../escaped": b"x"},
    "absolute": {"/tmp/sam-runner-escaped": b"x"},
    "in the middle": {"cifar-10-batches-bin/../../escaped": b"x"},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_writes_nothing_anywhere(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "cifar-10-binary.tar.gz", ARCHIVES[name])
    work = tmp_path / "work"
    work.mkdir()
    done = invoke(monkeypatch, capsys, work, "data=cifar10", f"data.root={tmp_path}/data")
    refused(done, tmp_path / "escaped", work)
    assert "it lacks data_batch_1.bin" in done.stderr
    assert os.listdir(tmp_path / "data") == ["cifar-10-binary.tar.gz"]
    assert not os.path.exists("/tmp/sam-runner-escaped")


def test_a_link_in_an_archive_is_not_followed(tmp_path, monkeypatch, capsys):
    (tmp_path / "secret").write_bytes(file_contents("cifar10", "binary", random_files("cifar10"))["test_batch.bin"])
    members = {f"cifar-10-batches-bin/{name}.bin": b"" for name in BATCHES[1:]}
    links = [("cifar-10-batches-bin/data_batch_1.bin", str(tmp_path / "secret"))]
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "cifar-10-binary.tar.gz", members, links)
    work = tmp_path / "work"
    work.mkdir()
    done = invoke(monkeypatch, capsys, work, "data=cifar10", f"data.root={tmp_path}/data")
    refused(done, tmp_path / "ran", work)
    assert "it lacks data_batch_1.bin" in done.stderr


def test_a_bomb_of_an_archive_is_not_unpacked(tmp_path, monkeypatch, capsys):
    """Four GiB of zeros in four MB: refused by the size that its entry claims, or by its real size."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with open(tmp_path / "cifar-10-binary.tar.gz", "wb") as out:
        header = bytearray(512)
        header[:37] = b"cifar-10-batches-bin/data_batch_1.bin"
        header[100:108], header[124:136], header[156:157] = b"0000644\0", b"%011o\0" % (3 << 30), b"0"
        header[257:265] = b"ustar\x0000"
        header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
        out.write(squeezer.compress(bytes(header)))
        for _ in range(64):
            out.write(squeezer.compress(bytes(1 << 20)))
        out.write(squeezer.flush())
    work = tmp_path / "work"
    work.mkdir()
    started = time.perf_counter()
    done = invoke(monkeypatch, capsys, work, "data=cifar10", f"data.root={tmp_path}")
    refused(done, tmp_path / "ran", work)
    assert "has more or larger members than CIFAR's archive" in done.stderr
    assert time.perf_counter() - started < 5


@pytest.mark.slow
def test_a_bomb_in_an_extended_header_is_not_unpacked(tmp_path, monkeypatch, capsys):
    """Such a header is read whole before the size of any member is known: a gigabyte of it in one MB."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with open(tmp_path / "cifar-10-binary.tar.gz", "wb") as out:
        header = bytearray(512)
        header[:1], header[124:136], header[156:157] = b"x", b"%011o\0" % (1 << 30), b"x"
        header[257:265] = b"ustar\x0000"
        header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
        out.write(squeezer.compress(bytes(header)))
        for _ in range(1024):
            out.write(squeezer.compress(bytes(1 << 20)))
        out.write(squeezer.flush())
    work = tmp_path / "work"
    work.mkdir()
    done = invoke(monkeypatch, capsys, work, "data=cifar10", f"data.root={tmp_path}")
    refused(done, tmp_path / "ran", work)
    assert "unpacks to more than 512 MiB" in done.stderr


def bomb_of_an_image(side=30_000):
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * 100), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGES = {
    "decompression bomb": bomb_of_an_image(),
    "empty": b"",
    "text": b"#!/bin/sh\ntouch ran\n",
    "cut": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0",
    "a pickle": pickle.dumps(Exploit("ran")),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(ran) (w) file\n",
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_an_image_that_is_none_is_named(name, storage, tmp_path, monkeypatch, capsys):
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / "data" / part / label / f"{index}.png")
    (tmp_path / "data" / "train" / "b" / "2.png").write_bytes(IMAGES[name])
    done = invoke(
        monkeypatch, capsys, tmp_path, "data=image_folder", "data.root=data", f"data.storage={storage}",
        "data.image_size=8", "data.num_workers=0", "batch_size=8", "epochs=1", "model.width=4", "device=cpu",
        "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "train/b/2.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_a_damaged_file_of_labels_gives_labels_or_a_message(noise, place):
    stream = io.BytesIO()
    torch.save({"clean_label": np.arange(20), "worse_label": np.arange(20)}, stream, pickle_protocol=2)
    content = bytearray(stream.getvalue())
    at = place % len(content)
    content[at : at + len(noise)] = noise
    try:
        outcome = load_pickle(bytes(content), "labels")
    except InputError as error:
        outcome = str(error)
    assert isinstance(outcome, dict) or outcome.startswith("labels ")


def test_what_is_plain_is_read(tmp_path):
    file = write_labels_file(tmp_path / "human.pt", {"a": [1, 2], "b": [[1, 2], [3, 4]]}, np.int32)
    values = load_pickle_file(Path(file))
    assert values["a"].tolist() == [1, 2]
    assert values["b"].tolist() == [[1, 2], [3, 4]]
    turned = pickle.dumps({"x": np.asfortranarray(np.arange(6.0).reshape(2, 3))}, protocol=2)
    assert np.array_equal(load_pickle(turned, "x")["x"], np.arange(6.0).reshape(2, 3))
