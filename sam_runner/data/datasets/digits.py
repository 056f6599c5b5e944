"""scikit-learn's handwritten digits."""

import csv
import gzip
import importlib.util
from pathlib import Path

import torch

from sam_runner.data.image_sets import make_image_set
from sam_runner.data.splits import Splits
from sam_runner.utils.errors import InputError


def digits() -> Splits:
    """Read scikit-learn's 1,797 handwritten 8x8 digits (UCI Optical Recognition of Handwritten Digits, test part).

    Every fifth image of each class is in the test set: 1,442 training and 355 test images. The 17 grey levels are
    scaled to 0 to 255.

    Raises:
        InputError: If scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")  # not imported: the import takes 1.5 s and needs SciPy
    if package is None or package.origin is None:
        raise InputError("data=digits needs scikit-learn: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as lines:
        table = torch.tensor([[int(float(cell)) for cell in row] for row in csv.reader(lines)])
    images = (table[:, :64] * 255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64]
    position_in_class = torch.zeros_like(labels)
    for label in range(10):
        members = labels == label
        position_in_class[members] = torch.arange(int(members.sum()))
    is_test = position_in_class % 5 == 4
    classes = tuple(str(digit) for digit in range(10))
    return Splits(
        train=make_image_set(images[~is_test], labels[~is_test], classes),
        test=make_image_set(images[is_test], labels[is_test], classes),
    )
