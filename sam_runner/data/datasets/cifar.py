"""CIFAR-10 and CIFAR-100, from the published archives or from their folders, in the binary or the Python version.

Archives are read in memory. Nothing is extracted, so no member can be written outside its folder.
"""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_runner.data.datasets.download import download_file
from sam_runner.data.datasets.restricted_pickle import load_pickle
from sam_runner.data.image_sets import ImageSet, make_image_set
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError, MissingDataError

SITE = "https://www.cs.toronto.edu/~kriz"
NUM_PIXELS = 3 * 32 * 32  # values of one image
MAX_FILE_BYTES = 1 << 28  # the largest file is CIFAR-100's train, 155 MB
MAX_MEMBERS, MAX_UNPACKED_BYTES = 20, 1 << 29  # per archive; CIFAR's unpack to 185 MB
CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES_100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip


@dataclass(frozen=True)
class _Version:
    """Names and digest of a published version: binary or Python.

    Attributes:
        folder: Name of the folder in the archive.
        archive: File name of the archive.
        sha256: Hex sha256 of the archive.
        train: File names of the training set.
        test: File name of the test set.
    """

    folder: str
    archive: str
    sha256: str
    train: tuple[str, ...]
    test: str


TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = (
    _Version("cifar-10-batches-bin", "cifar-10-binary.tar.gz",
             "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
             tuple(f"{name}.bin" for name in TRAIN_FILES), "test_batch.bin"),
    _Version("cifar-10-batches-py", "cifar-10-python.tar.gz",
             "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", TRAIN_FILES, "test_batch"),
)  # fmt: skip
CIFAR100 = (
    _Version("cifar-100-binary", "cifar-100-binary.tar.gz",
             "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", ("train.bin",), "test.bin"),
    _Version("cifar-100-python", "cifar-100-python.tar.gz",
             "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7", ("train",), "test"),
)  # fmt: skip


def cifar10(*, root: str, download: bool = False, url: str = SITE) -> Splits:
    """Read CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour 32x32 images, ten classes, in the published order.

    Args:
        root: Folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` (as torchvision unpacks it), with an
            archive ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``, or one of the two folders itself.
        download: Download the binary archive (162 MiB) to `root` if none of these is found.
        url: URL of the folder with the archive: the published one or a mirror.

    Raises:
        InputError: If a file is missing, cannot be downloaded or read, or has other contents.
    """
    return _load_splits("CIFAR-10", CIFAR10, root, url if download else None, CLASSES_10)


def cifar100(*, root: str, download: bool = False, url: str = SITE) -> Splits:
    """Read CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour 32x32 images, a hundred classes (fine labels).

    Args:
        root: As for `cifar10`, with ``cifar-100-binary`` or ``cifar-100-python``.
        download: Download the binary archive (161 MiB) to `root` if nothing is found.
        url: As for `cifar10`.

    Raises:
        InputError: If a file is missing, cannot be downloaded or read, or has other contents.
    """
    return _load_splits("CIFAR-100", CIFAR100, root, url if download else None, CLASSES_100)


def _load_splits(
    name: str, versions: tuple[_Version, ...], root: str, url: str | None, classes: tuple[str, ...]
) -> Splits:
    base = Path(os.path.expanduser(root))
    try:
        return _find_and_read(name, versions, base, root, url, classes)
    except OSError as error:
        raise InputError(
            f"data.root={root[:200]} cannot be read: {error.strerror or error}\n  give a folder that you can read"
        ) from error


def _find_and_read(
    name: str, versions: tuple[_Version, ...], base: Path, root: str, url: str | None, classes: tuple[str, ...]
) -> Splits:
    location = _find(base, versions)
    if location is None and url is not None:
        version = versions[0]
        download_file(f"{url}/{version.archive}", base / version.archive, version.sha256)
        location = _find(base, versions)
    if location is None:
        candidates = ", ".join(f"{version.folder}/ or {version.archive}" for version in versions)
        raise MissingDataError(
            f"{name} is not in data.root={root}\n"
            f"  looked for: {candidates}\n"
            f"  to get it:  add data.download=true, or download {SITE}/{versions[0].archive}\n"
            f"              (sha256 {versions[0].sha256}) into {root}"
        )
    path, version = location
    files = dict(_read_archive(path, version) if path.is_file() else _read_folder(path, version))
    missing = [file for file in (*version.train, version.test) if file not in files]
    if missing:
        raise InputError(f"{path} is incomplete: it lacks {', '.join(missing)}\n  download it again")
    parts = {file: _parse_file(content, f"{path}/{file}", len(classes)) for file, content in files.items()}
    return Splits(
        train=_make_set([parts[file] for file in version.train], path, classes),
        test=_make_set([parts[version.test]], path, classes),
    )


def _find(root: Path, versions: tuple[_Version, ...]) -> tuple[Path, _Version] | None:
    """Find an unpacked folder or else an archive, of the binary version or else of the Python version."""
    for version in versions:
        for folder in (root / version.folder, root):
            if (folder / version.test).is_file() and (folder / version.train[0]).is_file():
                return folder, version
    for version in versions:
        if (root / version.archive).is_file():
            return root / version.archive, version
    return None


def _read_folder(folder: Path, version: _Version) -> Iterator[tuple[str, bytes]]:
    for name in (*version.train, version.test):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MAX_FILE_BYTES:
                raise InputError(f"{path} is larger than any file of CIFAR\n  download it again")
            yield name, path.read_bytes()


def _read_archive(path: Path, version: _Version) -> Iterator[tuple[str, bytes]]:
    """Read the files of a version from its archive, in memory; other members are skipped."""
    names = {f"{version.folder}/{name}": name for name in (*version.train, version.test)}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=_LimitedReader(unpacked), mode="r|") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS or member.size > MAX_FILE_BYTES:
                    raise InputError(f"{path} has more or larger members than CIFAR's archive\n  download it again")
                handle = archive.extractfile(member) if member.isreg() and member.name in names else None
                if handle is not None:
                    yield names[member.name], handle.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}\n  it may be damaged; download it again") from error


class _LimitedReader(io.RawIOBase):
    """Stream that raises after `MAX_UNPACKED_BYTES`, because a small archive can unpack to any size."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        super().__init__()
        self._stream, self._left = stream, MAX_UNPACKED_BYTES

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        self._left -= size
        if self._left < 0:
            raise OSError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
        return self._stream.read(size)


def _parse_file(content: bytes, name: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, uint8, (N, 3072), and labels, (N,), of one file."""
    if not name.endswith(".bin"):
        values = load_pickle(content, name)
        pixels, labels = values.get("data"), values.get("labels", values.get("fine_labels"))
        are_integers = isinstance(labels, list) and all(type(label) is int for label in labels)
        if not isinstance(pixels, np.ndarray) or not isinstance(labels, list) or not are_integers:
            raise InputError(f"{name} does not hold images and labels of CIFAR\n  download it again")
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), NUM_PIXELS):
            raise InputError(f"{name} has {len(labels)} labels and images of shape {pixels.shape}\n  download it again")
        try:
            return pixels, np.array(labels, np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{name} has labels outside of int64\n  download it again") from error
    width = NUM_PIXELS + (2 if num_classes == 100 else 1)  # CIFAR-100 starts with the coarse label
    num_images, num_extra = divmod(len(content), width)
    if num_extra or not num_images:
        raise InputError(
            f"{name} has {len(content)} bytes, not a multiple of {width}\n  it may be damaged; download it again"
        )
    table = np.frombuffer(content, np.uint8).reshape(num_images, width)
    return table[:, -NUM_PIXELS:], table[:, -NUM_PIXELS - 1]


def _make_set(parts: list[tuple[np.ndarray, np.ndarray]], path: Path, classes: tuple[str, ...]) -> ImageSet:
    pixels = np.concatenate([part for part, _ in parts])
    labels = np.concatenate([part for _, part in parts]).astype(np.int64)
    images: Tensor = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    try:
        return make_image_set(images, torch.from_numpy(labels), classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
