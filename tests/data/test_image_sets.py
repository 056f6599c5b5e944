"""Image sets in memory: checks, labels, subsets."""

import pytest
import torch

from sam_runner.data.image_sets import make_image_set
from sam_runner.utils.errors import InputError


def numbered_images(count):
    """A set in which the two pixels of each image are the digits of its index in base 256."""
    index = torch.arange(count)
    pixels = torch.stack([index // 256, index % 256], 1).to(torch.uint8)
    return make_image_set(pixels.reshape(count, 1, 1, 2), index % 3, ("a", "b", "c"))


def indices_of(images_NCHW):
    high, low = images_NCHW.reshape(-1, 2).long().unbind(1)
    return (high * 256 + low).tolist()


def test_image_set_keeps_labels_as_int64_and_clean():
    part = make_image_set(
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 0, 1], dtype=torch.int32), ("a", "b")
    )
    assert part.labels.dtype == torch.int64
    assert part.labels.tolist() == part.clean_labels.tolist() == [1, 0, 1]
    assert len(part) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "classes", "message"),
    [
        ((2, 1, 2, 2), torch.float32, [0, 1], "ab", "uint8"),
        ((2, 2, 2), torch.uint8, [0, 1], "ab", r"\(2, 2, 2\)"),
        ((2, 1, 2, 2), torch.uint8, [0, 1, 1], "ab", "2 images and labels of shape .3,"),
        ((0, 1, 2, 2), torch.uint8, [], "ab", "0 images and labels of shape .0,"),
        ((2, 1, 2, 2), torch.uint8, [0, 0], "a", "at least 2 classes"),
        ((2, 1, 2, 2), torch.uint8, [0, 2], "ab", "example 1 has label 2; classes are 0 to 1"),
        ((2, 1, 2, 2), torch.uint8, [-1, 0], "ab", "example 0 has label -1"),
    ],
)
def test_invalid_image_sets_are_refused(shape, dtype, labels, classes, message):
    with pytest.raises(InputError, match=message):
        make_image_set(torch.zeros(shape, dtype=dtype), torch.tensor(labels, dtype=torch.int64), tuple(classes))


def test_labels_of_floats_are_refused():
    with pytest.raises(InputError, match=r"labels must be integers, not torch\.float32\n  give labels\.long\(\)"):
        make_image_set(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0.5, 1.0]), ("a", "b"))


def test_subset_keeps_images_and_both_labels_together():
    part = numbered_images(9).with_labels(torch.arange(9) % 2).subset(torch.tensor([7, 2]))
    assert indices_of(part.images_NCHW) == [7, 2]
    assert part.labels.tolist() == [1, 0]
    assert part.clean_labels.tolist() == [1, 2]
