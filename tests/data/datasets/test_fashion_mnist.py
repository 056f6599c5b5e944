"""Fashion-MNIST from IDX files that the tests write, and from the real files if they are installed."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_runner.data.datasets import fashion_mnist as fashion
from sam_runner.data.datasets import svhn
from sam_runner.data.datasets.fashion_mnist import CLASSES, fashion_mnist
from sam_runner.utils.errors import InputError

ROOT = Path("/usr/share/datasets")
FILES = {
    "train-images-idx3-ubyte": (12, 28, 28),
    "train-labels-idx1-ubyte": (12,),
    "t10k-images-idx3-ubyte": (5, 28, 28),
    "t10k-labels-idx1-ubyte": (5,),
}


def idx_bytes(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_files(folder, *, compressed=False):
    """Write small files with the names and format of Fashion-MNIST; return their contents by name."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, shape in FILES.items():
        arrays[name] = random.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = idx_bytes(arrays[name])
        (folder / f"{name}{'.gz' if compressed else ''}").write_bytes(gzip.compress(content) if compressed else content)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_reads_idx_files(tmp_path, compressed, below):
    arrays = write_files(tmp_path / below, compressed=compressed)
    splits = fashion_mnist(root=str(tmp_path))
    for part, name in ((splits.train, "train"), (splits.test, "t10k")):
        assert np.array_equal(part.images_NCHW[:, 0].numpy(), arrays[f"{name}-images-idx3-ubyte"])
        assert np.array_equal(part.labels.numpy(), arrays[f"{name}-labels-idx1-ubyte"])
        assert part.images_NCHW.ndim == 4
        assert part.labels.dtype == torch.int64
        assert part.classes == CLASSES


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_fashion_mnist_truncated_file_is_named(tmp_path, compressed, name):
    write_files(tmp_path, compressed=compressed)
    path = tmp_path / f"{name}{'.gz' if compressed else ''}"
    content = path.read_bytes()
    for length in (0, 2, 3, 4, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError) as caught:
            fashion_mnist(root=str(tmp_path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>404 not found</html>" * 9,
        b"\x00\x00\x09" + idx_bytes(np.zeros((5, 28, 28), np.uint8))[3:],
        bytes(16),
    ],
    ids=["text", "signed bytes", "zeros"],
)
def test_fashion_mnist_file_of_another_kind_is_named(tmp_path, content):
    write_files(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        fashion_mnist(root=str(tmp_path))
    assert str(path) in str(caught.value)


def test_fashion_mnist_damaged_compressed_file_is_named(tmp_path):
    write_files(tmp_path, compressed=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    for position in range(10, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            fashion_mnist(root=str(tmp_path))
        assert str(path) in str(caught.value)


def test_fashion_mnist_missing_labels_are_named(tmp_path):
    write_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist(root=str(tmp_path))


def test_fashion_mnist_counts_that_differ_are_refused(tmp_path):
    write_files(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11, np.uint8)))
    with pytest.raises(InputError, match=r"12 images and labels of shape .11,"):
        fashion_mnist(root=str(tmp_path))


def test_fashion_mnist_missing_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError) as caught:
        fashion_mnist(root=str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "data.download=true" in str(caught.value)


def test_fashion_mnist_downloads_missing_files(tmp_path, monkeypatch):
    write_files(tmp_path / "published", compressed=True)
    (tmp_path / "root" / "fashion-mnist").mkdir(parents=True)
    kept = "t10k-labels-idx1-ubyte"
    (tmp_path / "root" / "fashion-mnist" / f"{kept}.gz").write_bytes(
        (tmp_path / "published" / f"{kept}.gz").read_bytes()
    )
    calls = []

    def download_file(url, path, md5):
        calls.append((url, md5))
        path.write_bytes((tmp_path / "published" / path.name).read_bytes())

    monkeypatch.setattr(fashion, "download_file", download_file)
    for _ in range(2):
        splits = fashion_mnist(root=str(tmp_path / "root"), download=True, url="http://mirror")
        assert (len(splits.train), len(splits.test)) == (12, 5)
    wanted = [name for name in fashion.MD5 if kept not in name]
    assert calls == [(f"http://mirror/{name}", fashion.MD5[name]) for name in wanted]


def test_published_digests_equal_torchvisions():
    from torchvision.datasets import SVHN, FashionMNIST

    assert dict(FashionMNIST.resources) == fashion.MD5
    assert {name: md5 for _, name, md5 in SVHN.split_list.values()} == svhn.MD5
    assert all(url == f"{svhn.SITE}/{name}" for url, name, _ in SVHN.split_list.values())


def test_fashion_mnist_real_set():
    if not (ROOT / "fashion-mnist").is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist in /usr/share/datasets")
    splits = fashion_mnist(root=str(ROOT))
    assert splits.train.images_NCHW.shape == (60_000, 1, 28, 28)
    assert splits.test.images_NCHW.shape == (10_000, 1, 28, 28)
    assert splits.train.labels.bincount().tolist() == [6000] * 10
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    histogram = np.bincount(splits.train.images_NCHW.numpy().ravel(), minlength=256) / splits.train.images_NCHW.numel()
    mean = histogram @ np.arange(256) / 255
    std = (histogram @ (np.arange(256) / 255 - mean) ** 2) ** 0.5
    assert (mean, std) == pytest.approx((0.2860, 0.3530), abs=1e-4)  # as published with the set
