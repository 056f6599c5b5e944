"""CIFAR-10 and CIFAR-100 as published: the archives as they are, or their folders, binary or Python version.

An archive is read where it lies: nothing is extracted, so nothing can land outside a folder.
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

from sam_runner.data.datasets.download import fetch
from sam_runner.data.datasets.plain_pickle import read_plain
from sam_runner.data.image_sets import ImageSet, Splits, image_set
from sam_runner.utils.errors import InputError

SITE = "https://www.cs.toronto.edu/~kriz"
PIXELS = 3 * 32 * 32
MAX_FILE = 1 << 28  # bytes; the largest file is CIFAR-100's train, 155 MB
MAX_MEMBERS, MAX_UNPACKED = 20, 1 << 29  # of an archive; CIFAR's are 185 MB
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
    """One of the two forms that a set is published in.

    Attributes:
        folder: That the archive holds.
        archive: Its name.
        sha256: Of the archive.
        train: Files of the training set.
        test: File of the test set.
    """

    folder: str
    archive: str
    sha256: str
    train: tuple[str, ...]
    test: str


FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = (
    _Version("cifar-10-batches-bin", "cifar-10-binary.tar.gz",
             "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
             tuple(f"{name}.bin" for name in FIVE), "test_batch.bin"),
    _Version("cifar-10-batches-py", "cifar-10-python.tar.gz",
             "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", FIVE, "test_batch"),
)  # fmt: skip
CIFAR100 = (
    _Version("cifar-100-binary", "cifar-100-binary.tar.gz",
             "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", ("train.bin",), "test.bin"),
    _Version("cifar-100-python", "cifar-100-python.tar.gz",
             "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7", ("train",), "test"),
)  # fmt: skip


def cifar10(*, root: str, download: bool = False, url: str = SITE) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour 32x32 images of ten classes, in the published order.

    Args:
        root: Folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` (as torchvision unpacks it), with an
            archive ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``, or one of the two folders itself.
        download: Fetch the binary archive (162 MiB) to `root` where nothing is found.
        url: Folder on the network that has it: the published one or a mirror.
    """
    return _splits("CIFAR-10", CIFAR10, root, url if download else None, CLASSES_10)


def cifar100(*, root: str, download: bool = False, url: str = SITE) -> Splits:
    """CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour 32x32 images of a hundred classes, fine labels.

    Args:
        root: As for `cifar10`, with ``cifar-100-binary`` or ``cifar-100-python``.
        download: Fetch the binary archive (161 MiB) to `root` where nothing is found.
        url: As for `cifar10`.
    """
    return _splits("CIFAR-100", CIFAR100, root, url if download else None, CLASSES_100)


def _splits(name: str, versions: tuple[_Version, ...], root: str, url: str | None, classes: tuple[str, ...]) -> Splits:
    base = Path(os.path.expanduser(root))
    try:
        return _read(name, versions, base, root, url, classes)
    except OSError as error:
        raise InputError(f"data.root={root[:200]} cannot be read: {error.strerror or error}") from error


def _read(
    name: str, versions: tuple[_Version, ...], base: Path, root: str, url: str | None, classes: tuple[str, ...]
) -> Splits:
    found = _find(base, versions)
    if found is None and url is not None:
        version = versions[0]
        fetch(f"{url}/{version.archive}", base / version.archive, version.sha256)
        found = _find(base, versions)
    if found is None:
        places = ", ".join(f"{version.folder}/ or {version.archive}" for version in versions)
        raise InputError(
            f"{name} is not in data.root={root}\n"
            f"  looked for: {places}\n"
            f"  to get it:  add data.download=true, or fetch {SITE}/{versions[0].archive}\n"
            f"              (sha256 {versions[0].sha256}) into {root}"
        )
    path, version = found
    files = dict(_members(path, version) if path.is_file() else _files(path, version))
    missing = [entry for entry in (*version.train, version.test) if entry not in files]
    if missing:
        raise InputError(f"{path} is not whole: it lacks {', '.join(missing)}\n  get it again")
    train = [_records(files[entry], f"{path}/{entry}", len(classes)) for entry in version.train]
    return Splits(
        train=_set(train, path, classes),
        test=_set([_records(files[version.test], f"{path}/{version.test}", len(classes))], path, classes),
    )


def _find(root: Path, versions: tuple[_Version, ...]) -> tuple[Path, _Version] | None:
    """An unpacked folder before an archive, the binary version before the pickled one."""
    for version in versions:
        for folder in (root / version.folder, root):
            if (folder / version.test).is_file() and (folder / version.train[0]).is_file():
                return folder, version
    for version in versions:
        if (root / version.archive).is_file():
            return root / version.archive, version
    return None


def _files(folder: Path, version: _Version) -> Iterator[tuple[str, bytes]]:
    for name in (*version.train, version.test):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MAX_FILE:
                raise InputError(f"{path} is larger than any file of CIFAR")
            yield name, path.read_bytes()


def _members(path: Path, version: _Version) -> Iterator[tuple[str, bytes]]:
    """The files of an archive that are wanted, read in memory; whatever else is in it is passed over."""
    wanted = {f"{version.folder}/{name}": name for name in (*version.train, version.test)}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=_Bounded(unpacked), mode="r|") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS or member.size > MAX_FILE:
                    raise InputError(f"{path} holds what no archive of CIFAR does\n  get it again")
                handle = archive.extractfile(member) if member.isreg() and member.name in wanted else None
                if handle is not None:
                    yield wanted[member.name], handle.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}\n  it may be damaged; get it again") from error


class _Bounded(io.RawIOBase):
    """A stream that ends with an error after `MAX_UNPACKED` bytes: a small archive may unpack to any number of them."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        super().__init__()
        self._stream, self._left = stream, MAX_UNPACKED

    def read(self, size: int = -1) -> bytes:
        """As that of a file; a size has to be given."""
        self._left -= size
        if self._left < 0:
            raise OSError(f"it unpacks to more than {MAX_UNPACKED >> 20} MiB")
        return self._stream.read(size)


def _records(content: bytes, name: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072), uint8, and labels (N,) of one file."""
    if not name.endswith(".bin"):
        values = read_plain(content, name)
        pixels, labels = values.get("data"), values.get("labels", values.get("fine_labels"))
        numbers = isinstance(labels, list) and all(type(label) is int for label in labels)
        if not isinstance(pixels, np.ndarray) or not isinstance(labels, list) or not numbers:
            raise InputError(f"{name} does not hold images and labels of CIFAR\n  get it again")
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
            raise InputError(f"{name} has {len(labels)} labels and images of shape {pixels.shape}\n  get it again")
        try:
            return pixels, np.array(labels, np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{name} has labels that are no numbers\n  get it again") from error
    width = PIXELS + (2 if num_classes == 100 else 1)  # CIFAR-100 has the coarse label first
    rows, rest = divmod(len(content), width)
    if rest or not rows:
        raise InputError(f"{name} has {len(content)} bytes, no multiple of {width}\n  it may be damaged; get it again")
    table = np.frombuffer(content, np.uint8).reshape(rows, width)
    return table[:, -PIXELS:], table[:, -PIXELS - 1]


def _set(parts: list[tuple[np.ndarray, np.ndarray]], path: Path, classes: tuple[str, ...]) -> ImageSet:
    pixels = np.concatenate([part for part, _ in parts])
    labels = np.concatenate([part for _, part in parts]).astype(np.int64)
    images: Tensor = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    try:
        return image_set(images, torch.from_numpy(labels), classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
