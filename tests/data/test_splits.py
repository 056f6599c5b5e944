"""Holding out, subsampling, and label noise in the order that a noise model needs."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from sam_runner.data.datasets.image_folder import image_folder
from sam_runner.data.datasets.synthetic import synthetic
from sam_runner.data.image_sets import make_image_set
from sam_runner.data.noise import (
    asymmetric,
    human,
    instance,
    noise_model,
    noise_needs,
    none,
    pair,
    relabelled,
    symmetric,
)
from sam_runner.data.own_data import from_dataset
from sam_runner.data.splits import Splits, _log_similar_classes, hold_out, prepare_splits, subsample
from sam_runner.training.builders.data import build_data, require_held_out_images
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import derive_seed
from tests.data.datasets.test_image_folder import write_classes
from tests.data.test_image_sets import indices_of, numbered_images
from tests.helpers import TINY, config_of


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(300, 0.1, 30), (301, 0.25, 75), (2, 0.5, 1), (7, 0.9, 6)])
def test_hold_out_is_exact_disjoint_and_complete(count, fraction, held_out):
    splits = hold_out(Splits(train=numbered_images(count), test=numbered_images(3)), fraction)
    kept, validation = indices_of(splits.train.images_NCHW), indices_of(splits.validation.images_NCHW)
    assert len(validation) == held_out
    assert sorted(kept + validation) == list(range(count))
    assert kept == sorted(kept)
    assert splits.validation.labels.tolist() == [index % 3 for index in validation]
    assert indices_of(splits.test.images_NCHW) == [0, 1, 2]


def test_hold_out_is_the_same_for_every_call():
    parts = []
    for seed in range(3):
        torch.manual_seed(seed)
        splits = hold_out(Splits(train=numbered_images(500), test=numbered_images(3)), 0.2)
        parts.append(indices_of(splits.validation.images_NCHW))
    assert parts[0] == parts[1] == parts[2]
    assert parts[0] != list(range(100))


def test_hold_out_of_nothing_changes_nothing():
    splits = Splits(train=numbered_images(5), test=numbered_images(3))
    assert hold_out(splits, 0.0) is splits


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_hold_out_refuses_an_empty_part(fraction):
    with pytest.raises(InputError, match=f"val_fraction={fraction} of 10 images"):
        hold_out(Splits(train=numbered_images(10), test=numbered_images(3)), fraction)


def test_subsamples_are_the_same_for_every_call_and_nested():
    parts = []
    for seed, fraction in ((0, 0.5), (1, 0.5), (2, 0.1)):
        torch.manual_seed(seed)
        splits = subsample(Splits(train=numbered_images(500), test=numbered_images(3)), fraction)
        assert indices_of(splits.test.images_NCHW) == [0, 1, 2]
        parts.append(indices_of(splits.train.images_NCHW))
    assert parts[0] == parts[1] == sorted(set(parts[0]))
    assert [len(part) for part in parts] == [250, 250, 50]
    assert set(parts[2]) < set(parts[0]) != set(range(250))


def test_subsample_refuses_to_leave_no_image():
    with pytest.raises(InputError, match=r"train_fraction=0.01 of 10 images"):
        subsample(Splits(train=numbered_images(10), test=numbered_images(3)), 0.01)


@pytest.fixture
def small_splits():
    return synthetic(num_train=96, num_test=32, num_classes=4, channels=1, image_size=8)


def test_a_subsample_is_taken_after_holding_out(small_splits):
    half_noisy = partial(symmetric, rate=0.5)
    whole = prepare_splits(small_splits, none, needs="labels", seed=0, val_fraction=0.25)
    part = prepare_splits(small_splits, half_noisy, needs="labels", seed=0, val_fraction=0.25, train_fraction=0.5)
    assert part.validation.digest_bytes() == whole.validation.digest_bytes()
    assert len(part.train) == len(whole.train) // 2
    rows = {bytes(image) for image in whole.train.images_NCHW.flatten(1).numpy()}
    assert {bytes(image) for image in part.train.images_NCHW.flatten(1).numpy()} < rows
    assert int((part.train.labels != part.train.clean_labels).sum()) == len(part.train) // 2


def test_held_out_labels_are_noisy_where_asked():
    words = [*TINY, "data.val_fraction=0.25", "noise=symmetric", "noise.rate=0.5"]
    configs = [config_of(*words, f"data.val_labels={kind}") for kind in ("clean", "noisy")]
    clean, noisy = (build_data(config.data, config.noise, config.seed) for config in configs)
    assert torch.equal(clean.validation.labels, clean.validation.clean_labels)
    assert torch.equal(noisy.validation.clean_labels, clean.validation.clean_labels)
    wrong = noisy.validation.labels != noisy.validation.clean_labels
    assert int(wrong.sum()) == round(0.5 * len(noisy.validation))
    assert torch.equal(noisy.train.labels, clean.train.labels)  # the training set does not change


@pytest.mark.parametrize("needs", ["labels", "images", "whole_set"])
def test_a_noise_model_gets_the_input_that_it_declares(needs, small_splits):
    calls = []

    @noise_model(needs=needs)
    def noise(labels, num_classes, seed, **inputs):
        calls.append((len(labels), seed, {name: len(value) for name, value in inputs.items()}))
        return (labels + 1) % num_classes

    options = {"seed": 5, "val_fraction": 0.25, "train_fraction": 0.5, "val_labels": "noisy"}
    result = prepare_splits(small_splits, noise, needs=noise_needs(noise), **options)
    validation_seed = derive_seed(5, "held-out label noise")
    expected_calls = {
        "labels": [(36, 5, {}), (24, validation_seed, {})],
        "images": [(36, 5, {"images_NCHW": 36}), (24, 5, {"images_NCHW": 24})],
        "whole_set": [(96, 5, {})],
    }
    assert calls == expected_calls[needs]
    for part in (result.train, result.validation):
        assert torch.equal(part.labels, (part.clean_labels + 1) % 4)
    assert result.test is small_splits.test
    own = replace(small_splits, validation=small_splits.test)
    if needs == "whole_set":  # its labels are those of the training images
        with pytest.raises(InputError, match="val_labels=noisy has no effect"):
            prepare_splits(own, noise, needs=needs, seed=5, val_labels="noisy")
    assert len(prepare_splits(own, noise, needs=needs, **options).validation) == 24


def test_instance_noise_maps_held_out_images_to_the_same_wrong_classes():
    """Images of a class are equal, so most of its wrong labels are the class that its matrix prefers."""
    labels = torch.arange(4).repeat_interleave(200)
    images = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0)).mul(255).byte()[labels]
    part = make_image_set(images, labels, tuple("abcd"))
    result = prepare_splits(
        Splits(part, part), partial(instance, rate=0.5), needs="images", seed=5, val_fraction=0.5, val_labels="noisy"
    )
    found = []
    for half in (result.train, result.validation):
        wrong = half.labels != half.clean_labels
        counts = [torch.bincount(half.labels[wrong & (half.clean_labels == label)], minlength=4) for label in range(4)]
        found.append([int(count.argmax()) for count in counts])
        assert min(count.max() / count.sum() for count in counts) > 0.6
    assert found[0] == found[1]


def test_declared_needs_of_the_noise_models():
    assert noise_needs(lambda labels, num_classes, seed: labels) == "labels"  # a user's function without a declaration
    assert {noise_needs(model) for model in (none, symmetric, asymmetric, pair, relabelled)} == {"labels"}
    assert (noise_needs(instance), noise_needs(human)) == ("images", "whole_set")


def test_noise_that_needs_images_is_refused_for_files(tmp_path):
    write_classes(tmp_path, {"a": 5, "b": 5})
    splits = image_folder(root=str(tmp_path), storage="disk", image_size=8)
    with pytest.raises(InputError, match=r"needs the images in memory.*\n  set data\.storage=memory"):
        prepare_splits(splits, partial(instance, rate=0.5), needs="images", seed=0)


def splits_of_classes(train, test):
    """Sets of different images of the given classes out of a, b, c."""
    numbers = torch.arange(len(train) + len(test), dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    parts = zip(numbers.split([len(train), len(test)]), (train, test), strict=True)
    return Splits(*(make_image_set(images, torch.tensor(labels), ("a", "b", "c")) for images, labels in parts))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0, 0], "no test image of b, c"),
        ([0, 0], [0, 1], "no training image of b, c; no test image of c"),
        ([0, 1, 2], [2, 1, 0], None),
    ],
)
def test_classes_without_images_are_named(train, test, message, caplog):
    prepare_splits(splits_of_classes(train, test), none, needs="labels", seed=0)
    assert set(caplog.messages) == ({message} - {None})


@pytest.mark.parametrize("kind", ["images", "arrays", "files"])
def test_test_examples_that_are_trained_on_are_counted(kind, tmp_path, caplog):
    splits = splits_of_classes([0, 1, 2] * 4, [0, 1, 2])
    if kind == "arrays":
        splits = from_dataset(
            (torch.rand(12, 5), torch.arange(12) % 3), (torch.rand(3, 5), torch.arange(3)), ["a", "b", "c"]
        )
    if kind == "files":
        write_classes(tmp_path / "train", {"a": 6, "b": 6})
        write_classes(tmp_path / "test", {"a": 2, "b": 2})
        splits = image_folder(root=str(tmp_path), storage="disk", image_size=8)

    def warnings(splits):
        caplog.clear()
        prepare_splits(splits, none, needs="labels", seed=0)
        return list(dict.fromkeys(message for message in caplog.messages if "examples" in message))

    assert warnings(splits) == []
    leaking = replace(splits, test=splits.train.subset(torch.tensor([0, 3, 5])))
    assert warnings(leaking) == ["3 of 3 test examples are also training examples"]
    held_out = replace(splits, validation=splits.train.subset(torch.tensor([1])))
    assert warnings(held_out) == ["1 of 1 validation examples are also training examples"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("Cat", "dog", "cat "), "names that look alike: 'Cat', 'cat '"),
        (("caf\u00e9", "cafe\u0301"), r"names that look alike: 'caf\xe9', 'cafe\u0301'"),
        (("1", "10", "01"), None),
    ],
)
def test_classes_whose_names_look_alike_are_named(classes, message, caplog):
    _log_similar_classes(classes)
    assert (message is None) == (caplog.text == "") and (message or "") in caplog.text


def test_a_class_that_is_left_out_of_a_part_of_the_set_is_named(caplog):
    splits = splits_of_classes([0] * 50 + [1] * 50 + [2], [0, 1, 2])
    prepare_splits(splits, none, needs="labels", seed=0, train_fraction=0.1)
    assert set(caplog.messages) == {"no training image of c"}


def test_a_validation_set_of_the_data_set_is_kept_unless_images_are_held_out(caplog):
    splits = splits_of_classes([0, 1, 2] * 4, [0, 1, 2])
    splits = replace(splits, validation=splits.test)
    assert prepare_splits(splits, none, needs="labels", seed=0).validation is splits.test
    assert not caplog.messages
    held_out = prepare_splits(splits, none, needs="labels", seed=0, val_fraction=0.25)
    assert (len(held_out.train), len(held_out.validation)) == (9, 3)
    assert "own 3 validation images are not used" in caplog.messages[0]


def test_noisy_labels_of_a_validation_folder_need_no_other_held_out_images(tmp_path):
    for part in ("train", "test"):
        write_classes(tmp_path / part, {"a": 8, "b": 8})
    words = ["data=image_folder", f"data.root={tmp_path}", "data.val_labels=noisy", "noise=symmetric", "noise.rate=1"]
    config = config_of(*words)
    with pytest.raises(InputError, match="val_labels=noisy has no effect without held-out images"):
        require_held_out_images(config, build_data(config.data, config.noise, 0))
    write_classes(tmp_path / "val", {"a": 4, "b": 4})
    splits = build_data(config_of(*words, "data.test_fraction=0.3").data, config.noise, 0)
    require_held_out_images(config, splits)
    assert (splits.validation.labels != splits.validation.clean_labels).all()
