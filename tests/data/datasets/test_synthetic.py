"""data=synthetic: shapes, seed, and that it can be learnt."""

import torch

from sam_runner.data.datasets.synthetic import synthetic


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
