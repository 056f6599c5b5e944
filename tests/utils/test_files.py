"""Atomic writes, JSON files and checksums."""

import hashlib
import os

import pytest

from sam_runner.utils.files import hash_file, read_json, write_atomically, write_json


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_half_then_raise(error):
    def write(handle):
        handle.write(b"new, but only ha")
        raise error

    return write


def test_write_puts_the_bytes_in_place(tmp_path):
    write_atomically(tmp_path / "a", lambda handle: handle.write(b"\x00\xff"))
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert list_names(tmp_path) == ["a"]


def test_write_replaces_a_longer_file(tmp_path):
    (tmp_path / "a").write_bytes(b"long old content")
    write_atomically(tmp_path / "a", lambda handle: handle.write(b"new"))
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_write_that_raises_leaves_the_old_file_and_no_temporary(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", write_half_then_raise(error))
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list_names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_disk_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(5, "Input/output error")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "a", lambda handle: handle.write(b"new"))
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list_names(tmp_path) == ["a"]


def test_content_reaches_the_disk_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        is_folder = os.path.samestat(os.fstat(descriptor), tmp_path.stat())
        calls.append("folder" if is_folder else os.fstat(descriptor).st_size)
        fsync(descriptor)

    def record_replace(*arguments):
        calls.append("rename")
        replace(*arguments)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomically(tmp_path / "a", lambda handle: handle.write(b"12345"))
    assert calls == [5, "rename", "folder"]


def test_json_round_trip(tmp_path):
    value = {"name": "Größe", "values": [1, 2.5, None, True], "nested": {"a": -1e-300}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Größe" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_value_that_is_not_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert list_names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe", b"a: 1"])
def test_json_that_is_missing_or_damaged_reads_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 21) + 3])
def test_sha256_equals_hashlib(tmp_path, size):
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_sha256_of_abc_is_the_published_value(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
