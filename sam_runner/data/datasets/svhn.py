"""SVHN, from its published MATLAB files."""

import os
from pathlib import Path

import numpy as np
import torch

from sam_runner.data.datasets.download import download_file
from sam_runner.data.image_sets import ImageSet, make_image_set
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError, MissingDataError

SITE = "http://ufldl.stanford.edu/housenumbers"
MD5 = {  # digests of the published files, from torchvision
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}
MAX_IMAGES = 1 << 20  # per file; the largest has 531,131


def svhn(*, root: str, download: bool = False, extra: bool = False, url: str = SITE) -> Splits:
    """Read SVHN, cropped digits (Netzer et al., 2011): 73,257 + 26,032 colour 32x32 images of house numbers.

    The ten classes are the digits; the files label the digit 0 as 10.

    Args:
        root: Folder with ``train_32x32.mat`` and ``test_32x32.mat``, directly or in ``svhn``.
        download: Download missing files (182 and 64 MB, 1.3 GB for extra) to `root`.
        extra: Add the 531,131 easier images of ``extra_32x32.mat`` to the training set.
        url: URL of the folder with the files: the published one or a mirror.

    Raises:
        InputError: If a file is missing, cannot be downloaded or read, or has other contents.
    """
    base = Path(os.path.expanduser(root))
    folder = next((entry for entry in (base, base / "svhn") if (entry / "train_32x32.mat").is_file()), base)
    names = ["train_32x32.mat", "test_32x32.mat", *(["extra_32x32.mat"] if extra else [])]
    for name in names:
        if not (folder / name).is_file():
            if not download:
                raise MissingDataError(
                    f"SVHN is not in data.root={root}: no {name}\n"
                    f"  looked for: {', '.join(names)} in it and in svhn/\n"
                    f"  to get it:  add data.download=true, or download {SITE}/{name}"
                )
            download_file(f"{url}/{name}", folder / name, MD5[name])
    train, test, *extra_sets = (_read_mat(folder / name) for name in names)
    for part in extra_sets:
        images = torch.cat([train.images_NCHW, part.images_NCHW])
        train = make_image_set(images, torch.cat([train.labels, part.labels]), train.classes)
    return Splits(train=train, test=test)


def _read_mat(path: Path) -> ImageSet:
    """Read the arrays X, uint8, (32, 32, 3, N), and y, 1 to 10, (N, 1), of a file.

    SciPy's reader of MATLAB files builds arrays and runs no code. Shapes and types in the file are checked first, so
    only numeric arrays of the right shape are read.
    """
    from scipy.io import loadmat, whosmat  # imported here because the import is slow

    try:
        arrays = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        (shape, kind), (label_shape, label_kind) = arrays["X"], arrays["y"]
        if shape[:3] != (32, 32, 3) or len(shape) != 4 or kind != "uint8" or shape[3] > MAX_IMAGES:
            raise ValueError(f"its X is {kind} {shape}, not uint8 (32, 32, 3, N)")
        if label_shape != (shape[3], 1) or label_kind not in ("uint8", "double"):
            raise ValueError(f"its y is {label_kind} {label_shape}, not one number for each of {shape[3]} images")
        content = loadmat(path, variable_names=["X", "y"])
    except KeyError as error:
        raise InputError(f"{path} holds no {error.args[0]}: it is not a file of SVHN\n  download it again") from error
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(
            f"{path} cannot be read: {str(error)[:200]}\n  it may be damaged; download it again"
        ) from error
    labels = content["y"][:, 0]
    invalid = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(invalid):
        raise InputError(
            f"{path}: example {invalid[0]} has label {labels[invalid[0]]}; the digits are 1 to 10\n"
            "  it may be damaged; download it again"
        )
    images = torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)))
    digits = torch.from_numpy(labels.astype(np.int64) % 10)
    return make_image_set(images, digits, tuple(str(digit) for digit in range(10)))
