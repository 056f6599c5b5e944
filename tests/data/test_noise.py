"""Label noise: exact counts, rates, and labels that never change between versions."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sam_runner.data.image_sets import make_image_set
from sam_runner.data.noise import (
    CIFAR100_SUPERCLASSES,
    asymmetric,
    instance,
    none,
    pair,
    relabelled,
    require_labels,
    symmetric,
)
from sam_runner.data.splits import Splits, prepare_splits
from sam_runner.training import loop
from sam_runner.training.builders.data import build_data
from sam_runner.training.builders.run import build_run
from sam_runner.utils.errors import InputError
from sam_runner.utils.seeding import make_generator
from tests.data.datasets.test_cifar import random_files, training_labels, write_dataset, write_labels_file
from tests.helpers import TINY, config_of, train_tiny
from tests.training.test_checkpoints import Exploit

RATES = st.floats(0, 1)
SEEDS = st.integers(0, 2**63 - 1)


def balanced_labels(count, num_classes):
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
    labels = balanced_labels(count, num_classes)
    noisy = symmetric(labels, num_classes, seed, rate=rate, include_true_class=True)
    assert int((noisy != labels).sum()) <= round(rate * count)
    assert all(0 <= label < num_classes for label in noisy.tolist())


def test_true_class_is_never_drawn_by_default():
    labels = balanced_labels(5000, 3)
    assert bool((symmetric(labels, 3, 0, rate=1.0) != labels).all())


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_wrong_labels_with_the_true_class_included(rate, num_classes):
    count = 100_000
    labels = balanced_labels(count, num_classes)
    wrong = int((symmetric(labels, num_classes, 7, rate=rate, include_true_class=True) != labels).sum())
    assert within_four_standard_errors(wrong, round(rate * count), (num_classes - 1) / num_classes)


@pytest.mark.parametrize("include_true_class", [False, True])
def test_new_classes_are_uniform(include_true_class):
    labels = balanced_labels(100_000, 10)
    noisy = symmetric(labels, 10, 3, rate=1.0, include_true_class=include_true_class)
    first = 0 if include_true_class else 1
    shifts = torch.bincount((noisy - labels) % 10, minlength=10)[first:]
    assert within_four_standard_errors(shifts, 100_000, 1 / (10 - first))


def test_chosen_examples_are_spread_over_the_set():
    labels = balanced_labels(100_000, 10)
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
    noisy = symmetric(balanced_labels(1000, 10), 10, 42, **options)
    assert hashlib.sha256(noisy.numpy().astype("<i8").tobytes()).hexdigest() == digest


def test_noise_depends_on_its_seed_alone():
    labels = balanced_labels(500, 10)
    torch.manual_seed(1)
    first = symmetric(labels, 10, 0, rate=0.4)
    torch.manual_seed(2)
    assert torch.equal(symmetric(labels, 10, 0, rate=0.4), first)
    assert not torch.equal(symmetric(labels, 10, 1, rate=0.4), first)


def test_higher_rate_adds_to_the_examples_of_a_lower_one():
    labels = balanced_labels(500, 10)
    lower, higher = (symmetric(labels, 10, 0, rate=rate) != labels for rate in (0.2, 0.6))
    assert bool((higher | ~lower).all())


@pytest.mark.parametrize("include_true_class", [False, True])
def test_input_is_not_changed(include_true_class):
    labels = balanced_labels(100, 10)
    symmetric(labels, 10, 0, rate=0.9, include_true_class=include_true_class)
    assert torch.equal(labels, balanced_labels(100, 10))


def test_none_returns_the_labels():
    assert torch.equal(none(balanced_labels(20, 3), 3, 0), balanced_labels(20, 3))


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
    assert once[[4, 30, 55, 72, 95]].tolist() == [30, 55, 72, 95, 4]  # beaver, dolphin, otter, seal, whale
    flipped = labels
    for _ in range(5):  # each superclass has five classes
        flipped = asymmetric(flipped, 100, 0, rate=1.0)
    assert torch.equal(flipped, labels)


def test_asymmetric_noise_of_other_sets_is_refused():
    with pytest.raises(InputError, match="noise=pair"):
        asymmetric(balanced_labels(20, 5), 5, 0, rate=0.1)


@settings(deadline=None, max_examples=50)
@given(rate=RATES, seed=SEEDS, num_classes=st.integers(2, 12), count=st.integers(0, 200))
def test_pair_noise_goes_to_the_next_class(rate, seed, num_classes, count):
    labels = balanced_labels(count, num_classes)
    noisy = pair(labels, num_classes, seed, rate=rate)
    for label in range(num_classes):
        given_to = noisy[labels == label]
        assert int((given_to == (label + 1) % num_classes).sum()) == round(rate * len(given_to))
        assert set(given_to.tolist()) <= {label, (label + 1) % num_classes}


@pytest.mark.parametrize(("kind", "digest"), [(asymmetric, "d5de6826d561c6dd"), (pair, "7f2ad14107329bfc")])
def test_asymmetric_and_pair_labels_never_change_between_versions(kind, digest):
    noisy = kind(balanced_labels(1000, 10), 10, 3, rate=0.4)
    assert hashlib.sha256(noisy.to(torch.uint8).numpy().tobytes()).hexdigest()[:16] == digest


def test_instance_labels_never_change_between_versions():
    noisy = instance(balanced_labels(1000, 10), 10, 3, random_images(1000), rate=0.1)
    assert hashlib.sha256(noisy.to(torch.uint8).numpy().tobytes()).hexdigest()[:16] == "3339134ace47ecc4"


def random_images(count, side=2, seed=0):
    return torch.randint(0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.9])
def test_instance_noise_changes_the_mean_of_the_truncated_normal(rate):
    count = 20_000
    labels = balanced_labels(count, 5)
    wrong = int((instance(labels, 5, 3, random_images(count), rate=rate) != labels).sum())
    mean = float(stats.truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1).mean())
    assert within_four_standard_errors(wrong, count, mean)


def test_instance_noise_gives_the_classes_of_the_softmax():
    """The new labels of copies of two images follow the softmax over the logits of each image, in closed form."""
    count, num_classes, label = 40_000, 4, 2
    pair_of_images = random_images(2, seed=5)
    images = pair_of_images.repeat(count // 2, 1, 1, 1)
    noisy = instance(torch.full((count,), label), num_classes, 9, images, rate=1.0)
    matrix = torch.randn(4, num_classes, dtype=torch.float64, generator=make_generator(9, "label noise", label)).numpy()
    for which in (0, 1):
        scores = pair_of_images[which].flatten().numpy() / 255 @ matrix
        weights = np.exp(scores) * (np.arange(num_classes) != label)
        changed = noisy[which::2][noisy[which::2] != label]
        assert within_four_standard_errors(
            changed.bincount(minlength=num_classes)[[0, 1, 3]], len(changed), (weights / weights.sum())[[0, 1, 3]]
        )
    frequencies = [noisy[which::2].bincount(minlength=num_classes) for which in (0, 1)]
    assert not within_four_standard_errors(frequencies[0][0], count // 2, float(frequencies[1][0]) / (count // 2))


@settings(deadline=None, max_examples=30)
@given(rate=RATES, seed=SEEDS, num_classes=st.integers(2, 12), count=st.integers(0, 100))
def test_instance_noise_stays_among_the_classes(rate, seed, num_classes, count):
    labels = balanced_labels(count, num_classes)
    noisy = instance(labels, num_classes, seed, random_images(count), rate=rate)
    assert noisy.dtype == torch.int64
    assert all(0 <= label < num_classes for label in noisy.tolist())
    assert torch.equal(labels, balanced_labels(count, num_classes))
    assert torch.equal(instance(labels, num_classes, seed, random_images(count), rate=rate), noisy)


def test_instance_noise_of_two_classes_goes_to_the_other_one():
    labels = balanced_labels(400, 2)
    noisy = instance(labels, 2, 0, random_images(400), rate=1.0)
    assert 300 < int((noisy != labels).sum()) < 400  # the mean is 0.92
    assert set(noisy.tolist()) == {0, 1}


def write_labels(folder, labels, kind):
    path = folder / f"labels.{kind}"
    if kind == "npy":
        np.save(path, labels.numpy())
    else:
        torch.save(labels, path)
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "pt"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_are_read_from_a_file(tmp_path, kind, dtype):
    given_labels = (balanced_labels(20, 3) + 1) % 3
    file = write_labels(tmp_path, given_labels.to(dtype), kind)
    noisy = relabelled(balanced_labels(20, 3), 3, 0, file=file)
    assert torch.equal(noisy, given_labels)
    assert noisy.dtype == torch.int64


@pytest.mark.parametrize("kind", ["npy", "pt"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (balanced_labels(19, 3), r"has labels of shape \(19,\), the training set has 20 images"),
        (balanced_labels(20, 3)[:, None], r"has labels of shape \(20, 1\)"),
        (balanced_labels(20, 4), "example 3 has label 3; classes are 0 to 2"),
        (balanced_labels(20, 3) - 1, "example 0 has label -1"),
        (balanced_labels(20, 3).double(), "no tensor of integers"),
    ],
)
def test_labels_of_a_file_that_do_not_fit_are_refused(tmp_path, kind, labels, message):
    with pytest.raises(InputError, match=message):
        relabelled(balanced_labels(20, 3), 3, 0, file=write_labels(tmp_path, labels, kind))


@pytest.mark.parametrize(
    "name", ["gone.npy", "gone.pt", "objects.npy", "pickle.pt", "exploit.pt", "short.npy", "x.csv"]
)
def test_a_file_without_labels_is_refused_and_runs_nothing(tmp_path, name):
    path, trace = tmp_path / name, tmp_path / "trace"
    if name == "objects.npy":
        np.save(path, np.array([Exploit(trace)], dtype=object), allow_pickle=True)
    elif name == "pickle.pt":
        path.write_bytes(pickle.dumps(Exploit(trace)))
    elif name == "exploit.pt":
        torch.save(Exploit(trace), path)
    elif not name.startswith("gone"):
        path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (9, ), }")
    with pytest.raises(InputError, match=rf"^{path} cannot be read as labels"):
        relabelled(balanced_labels(20, 3), 3, 0, file=str(path))
    assert not trace.exists()


GOLDEN = {
    "symmetric": "c17f572bf3f4860b", "asymmetric": "a143ddb1a53a0eb3", "pair": "c8e9307e5859d7d2",
    "instance": "5f1886012f2674da", "relabelled": "98218061e6ec844d", "human": "bcdb62f88e324f9b",
}  # fmt: skip


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_run_has_golden_noise_and_clean_evaluation_labels(kind, tmp_path):
    words = ["data=synthetic", "data.num_train=400", "data.num_test=50", "data.image_size=4", "data.channels=1"]
    words.append("data.val_fraction=0.25")
    noise = [f"noise={kind}", "seed=3"]
    if kind == "human":
        files = random_files("cifar10")
        write_dataset(tmp_path, "cifar10", "binary", files)
        columns = {"clean_label": training_labels(files), "worse_label": training_labels(files)[::-1].copy()}
        words = ["data=cifar10", f"data.root={tmp_path}", "batch_size=16"]
        noise.append(f"noise.file={write_labels_file(tmp_path / 'human.pt', columns)}")
    if kind == "relabelled":
        noise.append(f"noise.file={write_labels(tmp_path, balanced_labels(300, 10), 'npy')}")
    configs = config_of(*words, *noise), config_of(*words)
    splits, clean = (build_data(config.data, config.noise, config.seed) for config in configs)
    assert hashlib.sha256(splits.train.labels.to(torch.uint8).numpy().tobytes()).hexdigest()[:16] == GOLDEN[kind]
    assert torch.equal(splits.train.clean_labels, clean.train.labels)
    for part in ("test",) if kind == "human" else ("test", "validation"):
        assert torch.equal(getattr(splits, part).labels, getattr(clean, part).labels)
        assert torch.equal(getattr(splits, part).clean_labels, getattr(clean, part).labels)


def test_the_label_transition_is_logged_at_the_start(tmp_path):
    from tests.runs.test_logging import read_events

    folder = train_tiny(tmp_path / "run", "noise=pair", "epochs=1")
    steps = {event.step for event in read_events(folder).Images("train/label_transition")}
    assert steps == {0}
    clean = train_tiny(tmp_path / "clean", "epochs=1")
    assert "train/label_transition" not in read_events(clean).Tags()["images"]


def test_the_transition_matrix_counts_clean_labels_by_row(monkeypatch):
    run = build_run(config_of(*TINY, "noise=symmetric", "noise.rate=0.5"))
    matrices = []
    monkeypatch.setattr(loop, "draw_confusion_matrix", lambda counts, *_: matrices.append(counts))
    loop._draw_label_transition(run)
    expected = np.zeros((4, 4), int)
    for clean, noisy in zip(run.train.clean_labels.tolist(), run.train.labels.tolist(), strict=True):
        expected[clean, noisy] += 1
    assert np.array_equal(matrices[0].numpy(), expected)
    assert expected.trace() == 48


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0] * 20, r"not a list\n  return torch.as_tensor\(labels\)"),
        (np.zeros(20, int), "not a ndarray"),
        (torch.zeros(20), r"not torch.float32\n  return labels.long\(\)"),
        (torch.zeros(19, dtype=torch.int64), r"not the shape \(19,\)"),
        (torch.full((20,), 3), "it returned 3 to 3"),
        (torch.full((20,), -1), "it returned -1 to -1"),
    ],
)
def test_a_noise_model_that_returns_no_labels_is_refused(returned, message):
    with pytest.raises(InputError, match=message):
        require_labels(returned, 20, 3)


@pytest.mark.parametrize("needs", ["labels", "whole_set"])
def test_a_noise_model_that_writes_into_its_argument_makes_noise(needs):
    def first_class(labels, **_):
        labels[:] = 0
        return labels

    clean = torch.tensor([0, 1, 2, 1])
    part = make_image_set(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), clean.clone(), ("a", "b", "c"))
    train = prepare_splits(Splits(part, part), first_class, needs=needs, seed=0).train
    assert torch.equal(train.clean_labels, clean)
    assert train.labels.tolist() == [0, 0, 0, 0]


def test_a_text_file_of_labels_is_answered_with_numpy(tmp_path):
    (tmp_path / "labels.csv").write_text("0\n1\n")
    with pytest.raises(InputError, match=r"csv files are not read; numpy.save"):
        relabelled(balanced_labels(2, 2), 2, 0, file=str(tmp_path / "labels.csv"))
