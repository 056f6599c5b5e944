"""Image sets in memory, against scikit-learn and files that the tests write."""

import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_runner.data.datasets import fashion_mnist as fashion
from sam_runner.data.datasets import svhn
from sam_runner.data.datasets.digits import digits
from sam_runner.data.datasets.fashion_mnist import FASHION_CLASSES, fashion_mnist
from sam_runner.data.datasets.synthetic import synthetic
from sam_runner.data.image_sets import Splits, hold_out, image_set, subsample
from sam_runner.training.build import build_data
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of

FASHION_ROOT = Path("/usr/share/datasets")
FASHION_FILES = {
    "train-images-idx3-ubyte": (12, 28, 28),
    "train-labels-idx1-ubyte": (12,),
    "t10k-images-idx3-ubyte": (5, 28, 28),
    "t10k-labels-idx1-ubyte": (5,),
}


def numbered(count):
    """Images whose two pixels spell their position."""
    position = torch.arange(count)
    pixels = torch.stack([position // 256, position % 256], 1).to(torch.uint8)
    return image_set(pixels.reshape(count, 1, 1, 2), position % 3, ("a", "b", "c"))


def positions(images_NCHW):
    high, low = images_NCHW.reshape(-1, 2).long().unbind(1)
    return (high * 256 + low).tolist()


def idx_bytes(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_fashion(folder, *, packed=False):
    """Small files of Fashion-MNIST's names and format; their contents by name."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, shape in FASHION_FILES.items():
        arrays[name] = random.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = idx_bytes(arrays[name])
        (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return arrays


def examples(part):
    return [(pixels.numpy().tobytes(), int(label)) for pixels, label in zip(part.images_NCHW, part.labels, strict=True)]


@pytest.fixture(scope="module")
def sklearn_digits():
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.rint(loaded.images * (255 / 16)).astype(np.uint8), loaded.target


@pytest.fixture(scope="module")
def digits_splits():
    return digits()


def test_digits_counts(digits_splits):
    assert (len(digits_splits.train), len(digits_splits.test)) == (1442, 355)
    assert digits_splits.validation is None
    assert digits_splits.train.classes == tuple("0123456789")


def test_digits_test_part_is_every_fifth_of_each_class_of_scikit_learn(digits_splits, sklearn_digits):
    images, target = sklearn_digits
    chosen = np.sort(np.concatenate([np.flatnonzero(target == label)[4::5] for label in range(10)]))
    rest = np.setdiff1d(np.arange(1797), chosen)
    for part, indices in ((digits_splits.test, chosen), (digits_splits.train, rest)):
        assert np.array_equal(part.images_NCHW[:, 0].numpy(), images[indices])
        assert np.array_equal(part.labels.numpy(), target[indices])


def test_digits_parts_are_disjoint_and_complete(digits_splits, sklearn_digits):
    images, target = sklearn_digits
    whole = Counter((pixels.tobytes(), int(label)) for pixels, label in zip(images, target, strict=True))
    train, test = Counter(examples(digits_splits.train)), Counter(examples(digits_splits.test))
    assert train + test == whole
    assert not train & test


def test_digits_without_scikit_learn_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        digits()


def make_synthetic(**changes):
    options = {"num_train": 300, "num_test": 200, "num_classes": 7, "channels": 3, "image_size": 10}
    return synthetic(**{**options, **changes})


def test_synthetic_shapes_and_ranges():
    splits = make_synthetic()
    assert splits.train.images_NCHW.shape == (300, 3, 10, 10)
    assert splits.test.images_NCHW.shape == (200, 3, 10, 10)
    assert splits.train.images_NCHW.dtype == torch.uint8
    assert len(splits.train.classes) == 7
    assert set(splits.train.labels.tolist()) == set(range(7))


def test_synthetic_is_a_function_of_its_own_seed():
    torch.manual_seed(1)
    first = make_synthetic(data_seed=3)
    torch.manual_seed(2)
    again, other = make_synthetic(data_seed=3), make_synthetic(data_seed=4)
    assert torch.equal(first.train.images_NCHW, again.train.images_NCHW)
    assert torch.equal(first.test.labels, again.test.labels)
    assert not torch.equal(first.train.images_NCHW, other.train.images_NCHW)
    assert not torch.equal(first.train.images_NCHW[:200], first.test.images_NCHW)


def test_synthetic_can_be_learnt_by_nearest_class_mean():
    splits = make_synthetic()
    train, test = (part.images_NCHW.double().flatten(1) for part in (splits.train, splits.test))
    means = torch.stack([train[splits.train.labels == label].mean(0) for label in range(7)])
    assert (torch.cdist(test, means).argmin(1) == splits.test.labels).double().mean() > 0.95


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_reads_idx_files(tmp_path, packed, below):
    arrays = write_fashion(tmp_path / below, packed=packed)
    splits = fashion_mnist(root=str(tmp_path))
    for part, name in ((splits.train, "train"), (splits.test, "t10k")):
        assert np.array_equal(part.images_NCHW[:, 0].numpy(), arrays[f"{name}-images-idx3-ubyte"])
        assert np.array_equal(part.labels.numpy(), arrays[f"{name}-labels-idx1-ubyte"])
        assert part.images_NCHW.ndim == 4
        assert part.labels.dtype == torch.int64
        assert part.classes == FASHION_CLASSES


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FASHION_FILES)
def test_fashion_mnist_truncated_file_is_named(tmp_path, packed, name):
    write_fashion(tmp_path, packed=packed)
    path = tmp_path / f"{name}{'.gz' if packed else ''}"
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
    write_fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        fashion_mnist(root=str(tmp_path))
    assert str(path) in str(caught.value)


def test_fashion_mnist_damaged_packed_file_is_named(tmp_path):
    write_fashion(tmp_path, packed=True)
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
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist(root=str(tmp_path))


def test_fashion_mnist_counts_that_differ_are_refused(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(11, np.uint8)))
    with pytest.raises(InputError, match=r"12 images and labels of shape .11,"):
        fashion_mnist(root=str(tmp_path))


def test_fashion_mnist_missing_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError) as caught:
        fashion_mnist(root=str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "data.download=true" in str(caught.value)


def test_fashion_mnist_downloads_what_is_missing(tmp_path, monkeypatch):
    write_fashion(tmp_path / "there", packed=True)
    (tmp_path / "here" / "fashion-mnist").mkdir(parents=True)
    kept = "t10k-labels-idx1-ubyte"
    (tmp_path / "here" / "fashion-mnist" / f"{kept}.gz").write_bytes((tmp_path / "there" / f"{kept}.gz").read_bytes())
    calls = []

    def fetch(url, path, md5):
        calls.append((url, md5))
        path.write_bytes((tmp_path / "there" / path.name).read_bytes())

    monkeypatch.setattr(fashion, "fetch", fetch)
    for _ in range(2):
        splits = fashion_mnist(root=str(tmp_path / "here"), download=True, url="http://mirror")
        assert (len(splits.train), len(splits.test)) == (12, 5)
    wanted = [name for name in fashion.MD5 if kept not in name]
    assert calls == [(f"http://mirror/{name}", fashion.MD5[name]) for name in wanted]


def test_published_sums_are_those_of_torchvision():
    from torchvision.datasets import SVHN, FashionMNIST

    assert dict(FashionMNIST.resources) == fashion.MD5
    assert {name: md5 for _, name, md5 in SVHN.split_list.values()} == svhn.MD5
    assert all(url == f"{svhn.SITE}/{name}" for url, name, _ in SVHN.split_list.values())


def test_fashion_mnist_real_set():
    if not (FASHION_ROOT / "fashion-mnist").is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist in /usr/share/datasets")
    splits = fashion_mnist(root=str(FASHION_ROOT))
    assert splits.train.images_NCHW.shape == (60_000, 1, 28, 28)
    assert splits.test.images_NCHW.shape == (10_000, 1, 28, 28)
    assert splits.train.labels.bincount().tolist() == [6000] * 10
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    histogram = np.bincount(splits.train.images_NCHW.numpy().ravel(), minlength=256) / splits.train.images_NCHW.numel()
    mean = histogram @ np.arange(256) / 255
    std = (histogram @ (np.arange(256) / 255 - mean) ** 2) ** 0.5
    assert (mean, std) == pytest.approx((0.2860, 0.3530), abs=1e-4)  # as published with the set


def test_image_set_keeps_labels_as_int64_and_clean():
    part = image_set(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 0, 1], dtype=torch.int32), ("a", "b"))
    assert part.labels.dtype == torch.int64
    assert part.labels.tolist() == part.clean_labels.tolist() == [1, 0, 1]
    assert len(part) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "classes", "message"),
    [
        ((2, 1, 2, 2), torch.float32, [0, 1], "ab", "uint8"),
        ((2, 2, 2), torch.uint8, [0, 1], "ab", r"\(2, 2, 2\)"),
        ((2, 1, 2, 2), torch.uint8, [0, 1, 1], "ab", "2 images and labels of shape .3,"),
        ((0, 1, 2, 2), torch.uint8, [], "ab", "0 images and labels of shape .0,"),
        ((2, 1, 2, 2), torch.uint8, [0, 0], "a", "at least 2 classes"),
        ((2, 1, 2, 2), torch.uint8, [0, 2], "ab", "example 1 has label 2; classes are 0 to 1"),
        ((2, 1, 2, 2), torch.uint8, [-1, 0], "ab", "example 0 has label -1"),
    ],
)
def test_image_set_refuses_what_it_cannot_hold(shape, dtype, labels, classes, message):
    with pytest.raises(InputError, match=message):
        image_set(torch.zeros(shape, dtype=dtype), torch.tensor(labels, dtype=torch.int64), tuple(classes))


def test_subset_keeps_images_and_both_labels_together():
    part = numbered(9).relabelled(torch.arange(9) % 2).subset(torch.tensor([7, 2]))
    assert positions(part.images_NCHW) == [7, 2]
    assert part.labels.tolist() == [1, 0]
    assert part.clean_labels.tolist() == [1, 2]


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(300, 0.1, 30), (301, 0.25, 75), (2, 0.5, 1), (7, 0.9, 6)])
def test_hold_out_is_exact_disjoint_and_complete(count, fraction, held_out):
    splits = hold_out(Splits(train=numbered(count), test=numbered(3)), fraction)
    kept, apart = positions(splits.train.images_NCHW), positions(splits.validation.images_NCHW)
    assert len(apart) == held_out
    assert sorted(kept + apart) == list(range(count))
    assert kept == sorted(kept)
    assert splits.validation.labels.tolist() == [position % 3 for position in apart]
    assert positions(splits.test.images_NCHW) == [0, 1, 2]


def test_hold_out_is_the_same_for_every_call():
    parts = []
    for seed in range(3):
        torch.manual_seed(seed)
        splits = hold_out(Splits(train=numbered(500), test=numbered(3)), 0.2)
        parts.append(positions(splits.validation.images_NCHW))
    assert parts[0] == parts[1] == parts[2]
    assert parts[0] != list(range(100))


def test_hold_out_of_nothing_changes_nothing():
    splits = Splits(train=numbered(5), test=numbered(3))
    assert hold_out(splits, 0.0) is splits


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_hold_out_refuses_an_empty_part(fraction):
    with pytest.raises(InputError, match=f"val_fraction={fraction} of 10 images"):
        hold_out(Splits(train=numbered(10), test=numbered(3)), fraction)


def test_fewer_are_the_same_for_every_call_and_nested():
    parts = []
    for seed, fraction in ((0, 0.5), (1, 0.5), (2, 0.1)):
        torch.manual_seed(seed)
        splits = subsample(Splits(train=numbered(500), test=numbered(3)), fraction)
        assert positions(splits.test.images_NCHW) == [0, 1, 2]
        parts.append(positions(splits.train.images_NCHW))
    assert parts[0] == parts[1] == sorted(set(parts[0]))
    assert [len(part) for part in parts] == [250, 250, 50]
    assert set(parts[2]) < set(parts[0]) != set(range(250))


def test_fewer_refuses_to_leave_none():
    with pytest.raises(InputError, match=r"train_fraction=0.01 of 10 images"):
        subsample(Splits(train=numbered(10), test=numbered(3)), 0.01)


def test_a_part_is_taken_of_what_is_not_held_out():
    whole = build_data(config_of(*TINY, "data.val_fraction=0.25"))
    part = build_data(
        config_of(*TINY, "data.val_fraction=0.25", "data.train_fraction=0.5", "noise=symmetric", "noise.rate=0.5")
    )
    assert part.validation.content() == whole.validation.content()
    assert len(part.train) == len(whole.train) // 2
    rows = {bytes(image) for image in whole.train.images_NCHW.flatten(1).numpy()}
    assert {bytes(image) for image in part.train.images_NCHW.flatten(1).numpy()} < rows
    assert int((part.train.labels != part.train.clean_labels).sum()) == len(part.train) // 2


def test_held_out_labels_are_noisy_where_asked():
    words = [*TINY, "data.val_fraction=0.25", "noise=symmetric", "noise.rate=0.5"]
    clean, noisy = (build_data(config_of(*words, f"data.val_labels={kind}")) for kind in ("clean", "noisy"))
    assert torch.equal(clean.validation.labels, clean.validation.clean_labels)
    assert torch.equal(noisy.validation.clean_labels, clean.validation.clean_labels)
    wrong = noisy.validation.labels != noisy.validation.clean_labels
    assert int(wrong.sum()) == round(0.5 * len(noisy.validation))
    assert torch.equal(noisy.train.labels, clean.train.labels)  # the training set does not change
