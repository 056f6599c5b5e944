"""scikit-learn's handwritten digits."""

import csv
import gzip
import importlib.util
from pathlib import Path

import torch

from sam_runner.data.image_sets import Splits, image_set
from sam_runner.utils.errors import InputError


def digits() -> Splits:
    """scikit-learn's 1,797 real 8x8 handwritten digits (UCI Optical Recognition of Handwritten Digits, test part).

    Every fifth image of each class is for testing: 1,442 to train on, 355 to test. The 17 grey levels are spread over 0
    to 255.
    """
    package = importlib.util.find_spec("sklearn")  # found, not imported: that takes 1.5 s and SciPy
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
        train=image_set(images[~is_test], labels[~is_test], classes),
        test=image_set(images[is_test], labels[is_test], classes),
    )
