"""SVHN, read from its MATLAB files as published."""

import os
from pathlib import Path

import numpy as np
import torch

from sam_runner.data.datasets.download import fetch
from sam_runner.data.image_sets import ImageSet, Splits, image_set
from sam_runner.utils.errors import InputError

SITE = "http://ufldl.stanford.edu/housenumbers"
MD5 = {  # as torchvision has them
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}
MAX_IMAGES = 1 << 20  # of a file; the largest has 531,131


def svhn(*, root: str, download: bool = False, extra: bool = False, url: str = SITE) -> Splits:
    """SVHN, cropped digits (Netzer et al., 2011): 73,257 + 26,032 colour 32x32 images of house numbers, ten digits.

    The label 10 of the files is the digit 0.

    Args:
        root: Folder with ``train_32x32.mat`` and ``test_32x32.mat``, or one that has them in ``svhn``.
        download: Fetch what is missing (182 and 64 MB, 1.3 GB for extra) to `root`.
        extra: Train on the 531,131 easier images of ``extra_32x32.mat`` too.
        url: Folder on the network that has them: the published one or a mirror.

    Raises:
        InputError: Where a file is missing, cannot be fetched or read, or holds something else.
    """
    base = Path(os.path.expanduser(root))
    folder = next((entry for entry in (base, base / "svhn") if (entry / "train_32x32.mat").is_file()), base)
    wanted = ["train_32x32.mat", "test_32x32.mat", *(["extra_32x32.mat"] if extra else [])]
    for name in wanted:
        if not (folder / name).is_file():
            if not download:
                raise InputError(
                    f"SVHN is not in data.root={root}: no {name}\n"
                    f"  looked for: {', '.join(wanted)} there and in svhn/\n"
                    f"  to get it:  add data.download=true, or fetch {SITE}/{name}"
                )
            fetch(f"{url}/{name}", folder / name, MD5[name])
    train, test, *more = (_read(folder / name) for name in wanted)
    for part in more:
        images = torch.cat([train.images_NCHW, part.images_NCHW])
        train = image_set(images, torch.cat([train.labels, part.labels]), train.classes)
    return Splits(train=train, test=test)


def _read(path: Path) -> ImageSet:
    """A file's X, uint8 (32, 32, 3, N), and y, 1 to 10, (N, 1).

    SciPy's reader of MATLAB files builds arrays and runs nothing. What a file says of its arrays is looked at before
    they are read, so that only plain numbers of the right shape are.
    """
    from scipy.io import loadmat, whosmat  # imported here: it takes a moment

    try:
        found = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        (shape, kind), (label_shape, label_kind) = found["X"], found["y"]
        if shape[:3] != (32, 32, 3) or len(shape) != 4 or kind != "uint8" or shape[3] > MAX_IMAGES:
            raise ValueError(f"its X is {kind} {shape}, not uint8 (32, 32, 3, N)")
        if label_shape != (shape[3], 1) or label_kind not in ("uint8", "double"):
            raise ValueError(f"its y is {label_kind} {label_shape}, not one number for each of {shape[3]} images")
        content = loadmat(path, variable_names=["X", "y"])
    except KeyError as error:
        raise InputError(f"{path} holds no {error.args[0]}: it is no file of SVHN") from error
    except Exception as error:  # whatever a damaged file leads to
        raise InputError(f"{path} cannot be read: {str(error)[:200]}\n  it may be damaged; get it again") from error
    labels = content["y"][:, 0]
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if len(wrong):
        raise InputError(f"{path}: example {wrong[0]} has label {labels[wrong[0]]}; the digits are 1 to 10")
    images = torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)))
    digits = torch.from_numpy(labels.astype(np.int64) % 10)
    return image_set(images, digits, tuple(str(digit) for digit in range(10)))
