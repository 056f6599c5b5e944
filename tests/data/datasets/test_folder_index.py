"""The cached list of a folder's files equals a new list after every change that it must notice."""

import os
import time

import pytest

from sam_runner.data.datasets import folder_index
from sam_runner.data.datasets.folder_index import find_layout_once
from sam_runner.data.datasets.folder_layout import find_layout
from tests.data.datasets.test_image_folder import write_classes


def make_old(root):
    """Set the times of all folders to an hour ago: a folder that has just changed is not kept."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 3600,) * 2)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    for part in ("train", "val", "test"):
        write_classes(folder / part, {"a": 3, "b 2": 12})
    (folder / "train" / "a" / "notes.txt").write_text("")
    (folder / "train" / "a" / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"")
    (folder / "train" / "empty").mkdir()
    (folder / "train" / "empty" / "x.png").write_bytes(b"")
    make_old(folder)
    return folder


@pytest.fixture
def listed(monkeypatch):
    calls = []
    monkeypatch.setattr(folder_index, "find_layout", lambda root: calls.append(root) or find_layout(root))
    return calls


def test_the_list_is_made_once(root, tmp_path, listed):
    cache = str(tmp_path / "cache")
    first, second = (find_layout_once(str(root), cache) for _ in range(2))
    assert listed == [str(root)]
    assert first == second == find_layout(str(root))
    find_layout_once(str(root), False)
    assert len(listed) == 2


CHANGES = {
    "added": lambda root: (root / "train/a/new.png").write_bytes(b""),
    "added in a new folder": lambda root: write_classes(root / "train/a/inner", {"c": 1}),
    "removed": lambda root: (root / "test/b 2/003.png").unlink(),
    "renamed": lambda root: (root / "test/b 2/003.png").rename(root / "test/b 2/999.png"),
    "a class more": lambda root: write_classes(root / "train", {"c": 1}),
    "not an image any more": lambda root: (root / "val/a/001.png").rename(root / "val/a/001.txt"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_files_is_noticed(change, root, tmp_path):
    cache = str(tmp_path / "cache")
    before = find_layout_once(str(root), cache)
    CHANGES[change](root)
    after = find_layout_once(str(root), cache)
    assert after == find_layout(str(root))
    assert after != before


@pytest.mark.parametrize("kind", ["link", "without a suffix", "just changed"])
def test_a_list_that_times_do_not_determine_is_not_kept(kind, root, tmp_path, listed):
    path = root / "train" / "a" / "other"
    if kind == "link":
        path.symlink_to(root / "train" / "a" / "000.png")
    elif kind == "without a suffix":
        path.write_bytes((root / "train" / "a" / "000.png").read_bytes())
    else:
        (root / "train" / "a" / "004.png").write_bytes(b"")
    if kind != "just changed":
        make_old(root)
    for _ in range(2):
        assert find_layout_once(str(root), str(tmp_path / "cache")) == find_layout(str(root))
    assert len(listed) == 2


def test_a_damaged_list_is_made_anew(root, tmp_path, listed):
    cache = tmp_path / "cache"
    find_layout_once(str(root), str(cache))
    (path,) = cache.glob("list-*.pt")
    path.write_bytes(path.read_bytes()[:50])
    assert find_layout_once(str(root), str(cache)) == find_layout(str(root))
    assert len(listed) == 2
    folder_index.choose_cache(str(cache)).write(path, {"folders": 3})
    assert find_layout_once(str(root), str(cache)) == find_layout(str(root))
    assert len(listed) == 3
