"""SVHN from MATLAB files: axes, the digit 0, extra images, missing and damaged files, other contents."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from sam_runner.data.datasets.svhn import svhn
from sam_runner.utils.errors import InputError

PARTS = {"train_32x32.mat": 30, "test_32x32.mat": 8, "extra_32x32.mat": 5}


def write_files(folder, parts=PARTS, *, compressed=True):
    """Write small files in the published format; return their X and y by name."""
    draws, arrays = np.random.default_rng(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in parts.items():
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        arrays[name] = {"X": draws.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels}
        savemat(folder / name, arrays[name], do_compression=compressed)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("below", ["", "svhn"])
@pytest.mark.parametrize("extra", [False, True])
def test_images_and_digits_are_read(tmp_path, compressed, below, extra):
    arrays = write_files(tmp_path / below, compressed=compressed)
    splits = svhn(root=str(tmp_path), extra=extra)
    names = ["train_32x32.mat", *(["extra_32x32.mat"] if extra else [])]
    for part, files in ((splits.train, names), (splits.test, ["test_32x32.mat"])):
        pictures = [arrays[file]["X"][..., index] for file in files for index in range(PARTS[file])]
        labels = [int(label) for file in files for label in arrays[file]["y"][:, 0]]
        assert len(part) == len(pictures)
        for image, picture in zip(part.images_NCHW, pictures, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), picture)
        assert part.labels.tolist() == [0 if label == 10 else label for label in labels]
        assert part.classes == tuple("0123456789")
        assert part.labels.dtype == torch.int64 and part.images_NCHW.is_contiguous()


def test_labels_as_doubles_are_read_too(tmp_path):
    arrays = write_files(tmp_path)
    savemat(tmp_path / "test_32x32.mat", arrays["test_32x32.mat"] | {"y": np.arange(1.0, 9.0)[:, None]})
    assert svhn(root=str(tmp_path)).test.labels.tolist() == list(range(1, 9))


@pytest.mark.parametrize("missing", PARTS)
def test_a_missing_file_is_named(tmp_path, missing):
    write_files(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=rf"no {missing}\n(.|\n)*http://ufldl.stanford.edu/housenumbers/{missing}"):
        svhn(root=str(tmp_path), extra=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": np.r_[1, 2, 11, 3:8][:, None].astype(np.uint8)}, "example 2 has label 11; the digits are 1 to 10"),
        ({"y": np.r_[1, 0, 9, 3:8][:, None].astype(np.uint8)}, "example 1 has label 0;"),
        ({"y": np.r_[1.5, 0, 9, 3:8][:, None]}, r"example 0 has label 1\.5"),
        ({"y": np.ones((7, 1), np.uint8)}, r"its y is uint8 \(7, 1\), not one number for each of 8 images"),
        ({"y": np.array([["a"]] * 8, dtype=object)}, "its y is cell"),
        ({"X": np.zeros((32, 32, 1, 8), np.uint8)}, r"its X is uint8 \(32, 32, 1, 8\)"),
        ({"X": np.zeros((32, 32, 3, 8))}, "its X is double"),
        ({"X": np.zeros((32, 32, 3), np.uint8)}, r"its X is uint8 \(32, 32, 3\)"),
    ],
)
def test_other_contents_are_refused(tmp_path, changed, message):
    arrays = write_files(tmp_path)
    path = tmp_path / "test_32x32.mat"
    savemat(path, arrays[path.name] | changed)
    with pytest.raises(InputError, match=rf"^{path}.*{message}"):
        svhn(root=str(tmp_path))


def test_a_file_without_images_is_refused(tmp_path):
    write_files(tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"y": np.ones((3, 1), np.uint8)})
    with pytest.raises(InputError, match=r"test_32x32\.mat holds no X: it is not a file of SVHN"):
        svhn(root=str(tmp_path))


@pytest.mark.parametrize("keep", [0, 60, 200, 0.5, 0.99])
def test_a_damaged_file_is_named(tmp_path, keep):
    write_files(tmp_path)
    path = tmp_path / "train_32x32.mat"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=rf"^{path} (cannot be read|holds no)"):
        svhn(root=str(tmp_path))


def test_the_newer_format_and_a_pickle_are_refused(tmp_path):
    import pickle

    from tests.training.test_checkpoints import Exploit

    for content in (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 400, pickle.dumps(Exploit(tmp_path))):
        write_files(tmp_path)
        (tmp_path / "test_32x32.mat").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            svhn(root=str(tmp_path))
