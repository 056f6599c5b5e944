"""`from_dataset`: arrays and torch datasets of any shape, as the model gets them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sam_runner import from_dataset
from sam_runner.config.data import AugmentConfig
from sam_runner.data.image_sets import ArraySet, ImageSet
from sam_runner.data.loader import ImageLoader
from sam_runner.data.normalisation import Normalisation, choose_normalisation
from sam_runner.data.splits import prepare_splits
from sam_runner.training.builders.data import _require_augmentable
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import seed_everything

DRAWS = np.random.default_rng(0)
LABELS = np.arange(12) % 3


def sets_of(inputs, labels=LABELS, classes=3):
    return from_dataset((inputs, labels), (inputs, labels), classes)


def batches(part, normalisation="auto", augmentation=None, dtype=torch.float32):
    chosen = choose_normalisation(normalisation, part, None, lambda: None)
    options = {"normalisation": chosen, "device": torch.device("cpu"), "augmentation": augmentation, "dtype": dtype}
    return list(ImageLoader(part, batch_size=5, **options).epoch())


@pytest.mark.parametrize("shape", [(4,), (2, 7), (3, 5, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_floats_reach_the_model_as_they_are(shape, kind):
    values = DRAWS.normal(size=(12, *shape)).astype(kind)
    train = sets_of(values).train
    found = torch.cat([batch.images for batch in batches(train)])
    assert (type(train), train.shape) == (ArraySet, shape)
    assert torch.equal(found, torch.from_numpy(values).float())
    assert torch.equal(torch.cat([batch.labels for batch in batches(train)]), torch.from_numpy(LABELS))


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 5, 6)])
def test_normalisation_by_the_set_gives_each_entry_of_the_first_axis_mean_0_and_std_1(shape):
    values = DRAWS.normal(3, 5, size=(12, *shape))
    values[:, 0] = 7.0  # constant
    train = sets_of(values).train
    found = torch.cat([batch.images for batch in batches(train, "set", dtype=torch.float64)]).numpy()
    single = values.astype(np.float32).astype(np.float64)
    axes = (0, *range(2, single.ndim))
    std = single.std(axes, keepdims=True)
    expected = (single - single.mean(axes, keepdims=True)) / np.where(std == 0, 1, std)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_integers_stay_integers():
    tokens = DRAWS.integers(0, 1000, size=(12, 9))
    train = sets_of(tokens).train
    assert torch.equal(torch.cat([batch.images for batch in batches(train)]), torch.from_numpy(tokens))
    with pytest.raises(InputError, match=r"data\.normalisation=set is for floats"):
        batches(train, "set")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NHW"])
def test_uint8_images_are_images_in_each_layout(layout):
    images = DRAWS.integers(0, 256, size=(12, 1 if layout == "NHW" else 3, 6, 7), dtype=np.uint8)
    given = {"NCHW": images, "NHWC": images.transpose(0, 2, 3, 1), "NHW": images[:, 0]}[layout]
    train = sets_of(given).train
    assert isinstance(train, ImageSet)
    assert torch.equal(train.images_NCHW, torch.from_numpy(images))


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_a_dataset_gives_the_same_sets_as_its_arrays():
    values = torch.from_numpy(DRAWS.normal(size=(12, 2, 4))).float()
    labels = torch.from_numpy(LABELS)
    expected = sets_of(values)
    for items in (
        TensorDataset(values, labels),
        Items([(value.numpy(), int(label)) for value, label in zip(values, labels, strict=True)]),
    ):
        found = from_dataset(items, items, ["class 0", "class 1", "class 2"])
        assert found.digest() == expected.digest()


PAIR, ALIKE = (torch.zeros(3), torch.zeros(2)), (torch.zeros(3, requires_grad=True), torch.zeros(3))
LABELS_OF_4 = [0, 1, 0, 1]
NO_ARRAYS = {
    "item": (Items([(PAIR, 0)] * 4), "item 0: a tuple of arrays of the shapes (3,), (2,) is not one array\n  join"),
    "item of NumPy": (Items([([np.zeros(3), np.zeros(2)], 0)] * 4), "a list of arrays of the shapes (3,), (2,)"),
    "item with gradients": (Items([(ALIKE, 0)] * 4), "shapes (3,), (3,) is not one array\n  join them by torch.stack"),
    "item of tensors": (Items([((torch.zeros(3), torch.zeros(3)), 0)] * 4), "item 0: a tuple of arrays"),
    "pair": (((torch.zeros(4, 3), torch.zeros(4, 2)), LABELS_OF_4), "train: a tuple of arrays of the shapes (4, 3), "),
    "list": (([torch.zeros(3)] * 4, LABELS_OF_4), "train: a list of arrays of the shapes (3,), (3,), (3,), ... is"),
    "ragged": (Items([([[1.0], [1.0, 2.0]], 0)] * 4), "item 0: a list is not an array of numbers of one shape"),
    "ragged labels": ((torch.zeros(2, 3), [[0], [0, 1]]), "train: a list is not an array of numbers of one shape"),
    "objects": (Items([(np.array([None]), 0)] * 4), "item 0: an array of object is not an array of numbers\n"),
    "texts": ((np.array(["a", "b"]), [0, 1]), "train: an array of <U1 is not an array of numbers\n"),
    "no labels": ((torch.zeros(2, 3), None), "train: a NoneType is not an array of numbers of one shape\n  accepted"),
    "sparse": ((torch.zeros(2, 3).to_sparse(), [0, 1]), "train: a sparse tensor is not accepted"),
}


@pytest.mark.parametrize("case", NO_ARRAYS)
def test_inputs_that_are_no_array_are_named_in_our_own_words(case):
    part, message = NO_ARRAYS[case]
    with pytest.raises(InputError) as raised:
        from_dataset(part, part, 2)
    assert message in str(raised.value)
    assert not any(word in str(raised.value) for word in ("inhomogeneous", "np.ndarray", "setting an array"))


@pytest.mark.parametrize("kind", [np.array, list, lambda names: np.array(names, object)])
def test_names_of_classes_are_labels(kind):
    values, classes = DRAWS.normal(size=(12, 4)).astype(np.float32), ["low", "2", "high"]
    names = [classes[label] for label in LABELS]
    items = Items(list(zip(values, kind(names), strict=True)))
    for part in ((values, kind(names)), items):
        assert torch.equal(from_dataset(part, part, classes).train.labels, torch.from_numpy(LABELS))


def test_pil_images_of_a_dataset_are_images():
    images = [Image.new("RGB", (5, 4), (number, 0, 9)) for number in range(12)]
    train = from_dataset(
        Items(list(zip(images, LABELS, strict=True))), Items(list(zip(images, LABELS, strict=True))), 3
    ).train
    assert train.shape == (3, 4, 5)
    assert train.images_NCHW[:, 0, 0, 0].tolist() == list(range(12))


def test_16_bit_images_of_a_dataset_keep_their_upper_bits():
    values = (DRAWS.integers(0, 256, size=(12, 4, 5)) * 257).astype(np.uint16)
    items = Items(list(zip(map(Image.fromarray, values), LABELS, strict=True)))
    assert torch.equal(from_dataset(items, items, 3).train.images_NCHW[:, 0], torch.from_numpy(values >> 8).byte())


@pytest.mark.parametrize(("kind", "name"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_images_of_numbers_of_unknown_range_are_refused(kind, name):
    items = Items([(Image.fromarray(np.full((4, 5), 200, kind)), 0)])
    with pytest.raises(InputError, match=f"item 0 is an image that cannot be read: it holds {name} numbers of unknown"):
        from_dataset(items, items, 3)


class Shifted(Dataset):
    """Floats that a random transformation shifts."""

    def __init__(self, shift):
        self.shift = shift

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((3,), float(index)) + self.shift(), index % 3


@pytest.mark.parametrize(
    ("shift", "is_random"),
    [
        (lambda: torch.rand(1), True),
        (lambda: np.random.random(), True),
        (lambda: random.random(), True),
        (lambda: 0.5, False),
    ],
)
def test_random_items_are_warned_of_and_draw_no_further_numbers(shift, is_random, caplog):
    seed_everything(3)
    expected = torch.stack([Shifted(shift)[index][0] for index in range(6)])
    following = shift()
    seed_everything(3)
    train = from_dataset(Shifted(shift), (np.zeros((6, 3)), LABELS[:6]), 3).train
    assert torch.equal(train.inputs, expected)
    assert shift() == following
    assert ("train: item 0 has another input when it is read again" in caplog.text) == is_random


@pytest.mark.parametrize(
    ("shape", "kind", "is_warned"),
    [
        *[((8, 6, 3), float, True), ((8, 6, 1), float, True), ((3, 8, 6), float, False), ((3, 8, 3), float, False)],
        *[((8, 3), float, False), ((8, 8, 5), float, True), ((5, 8, 8), float, False)],
        *[((8, 8, 5), np.uint8, True), ((8, 8, 3), np.uint8, False), ((5, 8, 8), np.uint8, False)],
    ],
)
def test_channels_last_that_are_not_turned_are_warned_of(shape, kind, is_warned, caplog):
    sets_of(np.zeros((12, *shape), kind))
    assert (f"inputs of shape {shape}" in caplog.text) == is_warned


def test_hold_out_noise_and_order_are_those_of_images():
    values = DRAWS.normal(size=(12, 4))
    images = sets_of(np.zeros((12, 4, 4), np.uint8))
    options = {"needs": "labels", "seed": 3, "val_fraction": 0.25, "train_fraction": 0.5}

    def shift(labels, num_classes, seed):
        return (labels + 1) % num_classes

    arrays, plain = (prepare_splits(sets, shift, **options) for sets in (sets_of(values), images))
    assert torch.equal(arrays.train.labels, plain.train.labels)
    assert torch.equal(arrays.train.clean_labels, plain.train.clean_labels)
    assert len(arrays.validation) == 3
    kept = torch.isin(torch.from_numpy(values).float(), arrays.train.inputs).all(1)
    assert torch.equal(torch.from_numpy(LABELS)[kept], arrays.train.clean_labels)


def test_floats_with_height_and_width_are_flipped_as_images_are():
    images = DRAWS.integers(0, 256, size=(12, 3, 6, 6), dtype=np.uint8)
    flip = AugmentConfig(flip=True, pad=2)
    found, expected = (
        batches(sets_of(given).train, "set", flip, torch.float64) for given in (images.astype(np.float32), images)
    )
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left.images, right.images, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "kind", "augment", "accepted"),
    [
        ((4,), float, {"mixup": 0.2}, True), ((4,), float, {"flip": True}, False),
        ((4,), int, {"mixup": 0.2}, False), ((4,), int, {}, True), ((2, 4), float, {"cutout": 2}, False),
        ((3, 4, 4), float, {"flip": True, "pad": 1, "cutmix": 1.0}, True),
        ((3, 4, 4), float, {"policy": "svhn"}, False), ((3, 4, 4), float, {"crop_scale_min": 0.1}, False),
    ],
)  # fmt: skip
def test_augmentations_that_do_not_fit_are_refused(shape, kind, augment, accepted):
    train = sets_of(np.ones((12, *shape), kind)).train
    if accepted:
        _require_augmentable(AugmentConfig(**augment), train)
        return
    with pytest.raises(InputError, match=f"augment.{next(iter(augment))}=.* cannot be applied to inputs of shape"):
        _require_augmentable(AugmentConfig(**augment), train)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((np.zeros((12, 4)), LABELS[:5]), "found 12 inputs and labels of shape"),
        ((np.zeros((12, 4)), LABELS + 1), "example 2 has label 3; classes are 0 to 2\n  .* begin at 1: subtract 1"),
        ((np.zeros((12, 4)), 10 * LABELS + 7), "example 0 has label 7; .*\n  labels found: 7, 17, 27; number them"),
        ((np.zeros((12, 4)), np.arange(12)), "example 3 has label 3; .*\n  .* give all their classes"),
        ((np.zeros((12, 4)), LABELS[:, None]), r"shape \(12, 1\)\n  .* of shape \(12,\); give labels.ravel\(\)"),
        ((np.zeros((12, 4)), np.eye(3)[LABELS]), r"shape \(12, 3\)\n  .* one-hot labels give labels.argmax\(1\)"),
        (
            (np.zeros((12, 4)), np.array(["class 0", "cat"] * 6)),
            "train has the label 'cat', which is not a class\n  class",
        ),
        (DataLoader(Items([(np.zeros(4), 0)])), "train is a DataLoader\n.*\n  give its dataset"),
        (Items([(np.zeros(4), np.inf)]), "item 0 has the label 'inf' of type float"),
        ((np.zeros((2, 4)), [[0], [1, 2]]), "not an array of numbers"),
        ((np.zeros((12, 4)), LABELS + 0.5), "not whole numbers"),
        ((np.zeros(12), LABELS), r"inputs have shape \(12,\)"),
        ((np.zeros((12, 4), complex), LABELS), "inputs are complex"),
        ((np.full((12, 4), np.inf), LABELS), "input 0 holds a value that is not finite"),
        ((np.full((12, 2), "x"), LABELS), "not an array of numbers"),
        ((np.zeros((12, 5)), LABELS), r"test: inputs have shape \(4,\), those of train \(5,\)"),
        ((np.zeros((12, 4), int), LABELS), "test: inputs are float32, those of train int64"),
        (Items([]), "train has no items"),
        (Items([(np.zeros(4), 0, 1)]), "item 0 is a tuple of 3 entries"),
        (Items([(np.zeros(4), True)]), "item 0 has the label 'True' of type bool"),
        (3, "train is a int"),
        ((np.ma.masked_less(np.arange(48.0).reshape(12, 4), 5), LABELS), "train: 5 values of an array are masked"),
        ((np.zeros((12, 4)), np.ma.masked_equal(LABELS, 1)), "train: 4 values of an array are masked"),
    ],
)
def test_data_that_cannot_be_used_are_named(train, message):
    with pytest.raises(InputError, match=message):
        from_dataset(train, (np.zeros((12, 4)), LABELS), 3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"dog": 1, "cat": 0}, "classes is a dict\n  accepted: a list of the names"),
        ({"dog", "cat"}, "classes is a set"),
        ("dog", "classes is a str"),
        (2.0, "classes is a float"),
        (["dog", "cat", "dog"], "two classes have the name 'dog'"),
    ],
)
def test_classes_need_an_order_and_different_names(classes, message):
    with pytest.raises(InputError, match=message):
        sets_of(np.zeros((12, 4)), LABELS % 2, classes)


def test_the_keys_of_a_dictionary_have_an_order():
    assert sets_of(np.zeros((12, 4)), LABELS % 2, {"dog": 0, "cat": 1}.keys()).train.classes == ("dog", "cat")


@pytest.mark.parametrize("kind", [">f4", ">f8"])
def test_arrays_of_the_other_byte_order_and_numbers_of_numpy_are_read(kind):
    values = DRAWS.normal(size=(12, 4)).astype(kind)
    train = sets_of(values, LABELS.astype(">i8"), LABELS.max() + 1).train
    assert torch.equal(train.inputs, torch.from_numpy(values.astype(np.float32)))
    assert (train.labels.tolist(), len(train.classes)) == (LABELS.tolist(), 3)


def test_the_identity_keeps_the_bits():
    values = torch.randn(64, 7) * 10.0 ** torch.randint(-30, 30, (64, 7))
    train = from_dataset((values, torch.zeros(64)), (values, torch.zeros(64)), 2).train
    assert choose_normalisation("auto", train, None, lambda: None) == Normalisation((0.0,) * 7, (1.0,) * 7, "none")
    assert torch.equal(torch.cat([batch.images for batch in batches(train)]), values)
