"""Fashion-MNIST, from its IDX files."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam_runner.data.datasets.download import download_file
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError, MissingDataError

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {  # digests of the published files, from torchvision
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def fashion_mnist(*, root: str, download: bool = False, url: str = SITE) -> Splits:
    """Read Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 + 10,000 grey 28x28 images of ten kinds of clothing.

    Args:
        root: Folder with the four ``*-ubyte`` or ``*-ubyte.gz`` files, directly or in ``fashion-mnist`` (Debian's
            package dataset-fashion-mnist) or ``FashionMNIST/raw`` (torchvision).
        download: Download missing files (29 MiB) to `root`/fashion-mnist.
        url: URL of the folder with the files: the published one or a mirror.

    Raises:
        InputError: If a file is missing, cannot be downloaded or read, or has other contents.
    """
    base = Path(os.path.expanduser(root))
    folder = _find_folder(base)
    if download and (folder is None or folder == base / "fashion-mnist"):  # this folder may be incomplete
        for name, md5 in MD5.items():
            if not any((base / "fashion-mnist" / entry).is_file() for entry in (name, name.removesuffix(".gz"))):
                download_file(f"{url}/{name}", base / "fashion-mnist" / name, md5)
        folder = base / "fashion-mnist"
    if folder is None:
        raise MissingDataError(
            f"Fashion-MNIST is not in data.root={root}\n"
            "  looked for: train-images-idx3-ubyte(.gz) in it, in fashion-mnist/ and in FashionMNIST/raw/\n"
            "  to get it:  apt-get install dataset-fashion-mnist, then data.root=/usr/share/datasets;\n"
            "              or add data.download=true"
        )
    parts = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = _read_idx(folder, f"{name}-images-idx3-ubyte"), _read_idx(folder, f"{name}-labels-idx1-ubyte")
        try:
            parts[split] = make_image_set(images.unsqueeze(1), labels, CLASSES)
        except InputError as error:
            raise InputError(f"{folder}/{name}-*: {error}") from error
    return Splits(train=parts["train"], test=parts["test"])


def _find_folder(root: Path) -> Path | None:
    for folder in (root, root / "fashion-mnist", root / "FashionMNIST" / "raw"):
        if any((folder / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
            return folder
    return None


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read an IDX file of bytes (LeCun's MNIST format): 0, 0, 8, ndim, big-endian int32 sizes, the bytes."""
    uncompressed, compressed = folder / name, folder / f"{name}.gz"
    path = uncompressed if uncompressed.is_file() else compressed
    try:
        content = path.read_bytes() if path == uncompressed else gzip.decompress(path.read_bytes())
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("not an IDX file of unsigned bytes")
        ndim = content[3]
        shape = np.frombuffer(content, ">i4", ndim, offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(tuple(shape))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}\n  it may be damaged; download it again") from error
    return torch.from_numpy(values.copy())
