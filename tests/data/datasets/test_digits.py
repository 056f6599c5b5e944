"""data=digits against scikit-learn's own loader."""

from collections import Counter

import numpy as np
import pytest

from sam_runner.data.datasets.digits import digits
from sam_runner.utils.errors import InputError


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
    test_indices = np.sort(np.concatenate([np.flatnonzero(target == label)[4::5] for label in range(10)]))
    train_indices = np.setdiff1d(np.arange(1797), test_indices)
    for part, indices in ((digits_splits.test, test_indices), (digits_splits.train, train_indices)):
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
