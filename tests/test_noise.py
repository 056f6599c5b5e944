"""Label noise: exact counts, rates, and labels that never change between versions."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_runner.data.noise import CIFAR100_SUPERCLASSES, asymmetric, none, pair, symmetric
from sam_runner.errors import InputError

RATES = st.floats(0, 1)
SEEDS = st.integers(0, 2**63 - 1)


def balanced(count, num_classes):
    return torch.arange(count) % num_classes


def within_four_standard_errors(hits, trials, probability):
    return np.all(
        np.abs(np.asarray(hits) - trials * probability) < 4 * (trials * probability * (1 - probability)) ** 0.5
    )


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 1), max_size=200), extra_classes=st.integers(0, 20), rate=RATES, seed=SEEDS)
def test_exactly_the_rounded_count_gets_another_class(labels, extra_classes, rate, seed):
    labels, num_classes = torch.tensor(labels, dtype=torch.int64), 2 + extra_classes
    noisy = symmetric(labels, num_classes, seed, rate=rate)
    assert int((noisy != labels).sum()) == round(rate * len(labels))
    assert noisy.dtype == torch.int64
    assert all(0 <= label < num_classes for label in noisy.tolist())


@settings(deadline=None)
@given(count=st.integers(0, 200), num_classes=st.integers(2, 20), rate=RATES, seed=SEEDS)
def test_true_class_among_the_new_ones_changes_no_more_than_the_count(count, num_classes, rate, seed):
    labels = balanced(count, num_classes)
    noisy = symmetric(labels, num_classes, seed, rate=rate, include_true_class=True)
    assert int((noisy != labels).sum()) <= round(rate * count)
    assert all(0 <= label < num_classes for label in noisy.tolist())


def test_true_class_is_never_drawn_by_default():
    labels = balanced(5000, 3)
    assert bool((symmetric(labels, 3, 0, rate=1.0) != labels).all())


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_wrong_labels_with_the_true_class_included(rate, num_classes):
    count = 100_000
    labels = balanced(count, num_classes)
    wrong = int((symmetric(labels, num_classes, 7, rate=rate, include_true_class=True) != labels).sum())
    assert within_four_standard_errors(wrong, round(rate * count), (num_classes - 1) / num_classes)


@pytest.mark.parametrize("include_true_class", [False, True])
def test_new_classes_are_uniform(include_true_class):
    labels = balanced(100_000, 10)
    noisy = symmetric(labels, 10, 3, rate=1.0, include_true_class=include_true_class)
    first = 0 if include_true_class else 1
    shifts = torch.bincount((noisy - labels) % 10, minlength=10)[first:]
    assert within_four_standard_errors(shifts, 100_000, 1 / (10 - first))


def test_chosen_examples_are_spread_over_the_set():
    labels = balanced(100_000, 10)
    changed = (symmetric(labels, 10, 5, rate=0.3) != labels).reshape(10, -1).sum(1)
    assert within_four_standard_errors(changed, 10_000, 0.3)


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"rate": 0.2}, "6968da05826ad47ac0180febb1fcc528763ac993d59683e0b77ed4b64b308c37"),
        ({"rate": 0.8}, "55d2e6bad6176231d6b5ac9ea04afcfe9e4e139c071f1e23d0aed8215196372f"),
        ({"rate": 0.4, "include_true_class": True}, "d2f7f673afcccf6607068f95db9eab9ab5d1542fd261f1fbb74228840c73b839"),
    ],
)
def test_labels_never_change_between_versions(options, digest):
    noisy = symmetric(balanced(1000, 10), 10, 42, **options)
    assert hashlib.sha256(noisy.numpy().astype("<i8").tobytes()).hexdigest() == digest


def test_noise_depends_on_its_seed_alone():
    labels = balanced(500, 10)
    torch.manual_seed(1)
    first = symmetric(labels, 10, 0, rate=0.4)
    torch.manual_seed(2)
    assert torch.equal(symmetric(labels, 10, 0, rate=0.4), first)
    assert not torch.equal(symmetric(labels, 10, 1, rate=0.4), first)


def test_higher_rate_adds_to_the_examples_of_a_lower_one():
    labels = balanced(500, 10)
    lower, higher = (symmetric(labels, 10, 0, rate=rate) != labels for rate in (0.2, 0.6))
    assert bool((higher | ~lower).all())


@pytest.mark.parametrize("include_true_class", [False, True])
def test_input_is_not_changed(include_true_class):
    labels = balanced(100, 10)
    symmetric(labels, 10, 0, rate=0.9, include_true_class=include_true_class)
    assert torch.equal(labels, balanced(100, 10))


def test_none_returns_the_labels():
    assert torch.equal(none(balanced(20, 3), 3, 0), balanced(20, 3))


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LOOKS_LIKE = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}  # Patrini et al.


@settings(deadline=None, max_examples=50)
@given(rate=RATES, seed=SEEDS, count=st.integers(0, 300))
def test_asymmetric_noise_of_cifar10_goes_only_to_the_neighbour(rate, seed, count):
    labels = torch.randint(10, (count,), generator=torch.Generator().manual_seed(seed % 2**31))
    noisy = asymmetric(labels, 10, seed, rate=rate)
    for label, name in enumerate(CIFAR10):
        target = CIFAR10.index(LOOKS_LIKE[name]) if name in LOOKS_LIKE else label
        given_to = noisy[labels == label]
        expected = round(rate * len(given_to)) if target != label else 0
        assert int((given_to != label).sum()) == expected
        assert set(given_to.tolist()) <= {label, target}


def test_asymmetric_noise_of_cifar100_stays_in_the_superclass_and_goes_round():
    labels = torch.arange(100).repeat(10)
    once = asymmetric(labels, 100, 0, rate=1.0)
    superclasses = torch.tensor(CIFAR100_SUPERCLASSES)
    assert torch.equal(superclasses[once], superclasses[labels])
    assert bool((once != labels).all())
    there = labels
    for _ in range(5):  # five classes in each
        there = asymmetric(there, 100, 0, rate=1.0)
    assert torch.equal(there, labels)


def test_asymmetric_noise_of_other_sets_is_refused():
    with pytest.raises(InputError, match="noise=pair"):
        asymmetric(balanced(20, 5), 5, 0, rate=0.1)


@settings(deadline=None, max_examples=50)
@given(rate=RATES, seed=SEEDS, num_classes=st.integers(2, 12), count=st.integers(0, 200))
def test_pair_noise_goes_to_the_next_class(rate, seed, num_classes, count):
    labels = balanced(count, num_classes)
    noisy = pair(labels, num_classes, seed, rate=rate)
    for label in range(num_classes):
        given_to = noisy[labels == label]
        assert int((given_to == (label + 1) % num_classes).sum()) == round(rate * len(given_to))
        assert set(given_to.tolist()) <= {label, (label + 1) % num_classes}


@pytest.mark.parametrize(("kind", "digest"), [(asymmetric, "d5de6826d561c6dd"), (pair, "7f2ad14107329bfc")])
def test_labels_never_change_between_versions_of_the_other_kinds(kind, digest):
    noisy = kind(balanced(1000, 10), 10, 3, rate=0.4)
    assert hashlib.sha256(noisy.to(torch.uint8).numpy().tobytes()).hexdigest()[:16] == digest
