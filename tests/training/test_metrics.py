"""Metrics against NumPy and against values worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_runner.sam.step import Passes, StepStats
from sam_runner.training.metrics import (
    SUMS,
    TrainMeter,
    confusion_matrix,
    evaluation_metrics,
    train_metrics,
)

CPU = torch.device("cpu")
SIZES = st.tuples(st.integers(1, 80), st.integers(2, 12), st.integers(0, 2**32 - 1), st.floats(0.1, 10))


def random_logits(count, num_classes, seed, scale=1.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, num_classes)) * scale, random.integers(0, num_classes, count)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def numpy_calibration_error(logits, labels, num_bins):
    confidence, hits = softmax(logits).max(1), logits.argmax(1) == labels
    total = 0.0
    for number in range(num_bins):
        inside = (confidence > number / num_bins) & (confidence <= (number + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    return total


def two_class_logits(confidence, count):
    """The first class with the given probability."""
    return torch.tensor([[math.log(confidence), math.log(1 - confidence)]] * count, dtype=torch.float64)


def stats(logits, passes=2, **values):
    numbers = {"loss": 0.0, "loss_perturbed": 0.0, "grad_norm": 0.0, "eps_norm": 0.0} | values
    scalars = {name: torch.tensor(value, dtype=torch.float32) for name, value in numbers.items()}
    finite, passes = torch.ones(4, dtype=torch.bool), Passes(passes, passes, passes)
    return StepStats(**scalars, outputs=logits, finite=finite, skipped=False, passes=passes)


def predicting(classes, num_classes=4):
    return torch.nn.functional.one_hot(torch.tensor(classes), num_classes).float()


@settings(deadline=None)
@given(sizes=SIZES)
def test_evaluation_metrics_equal_numpy(sizes):
    logits, labels = random_logits(*sizes)
    values = evaluation_metrics(torch.from_numpy(logits), torch.from_numpy(labels))
    log_probability = np.log(softmax(logits))[np.arange(len(labels)), labels]
    expected = {
        "accuracy": (logits.argmax(1) == labels).mean(),
        "nll": -log_probability.mean(),
        "calibration_error": numpy_calibration_error(logits, labels, 15),
    }
    if logits.shape[1] > 5:
        rank = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
        expected["accuracy_top5"] = (rank < 5).mean()
    assert values == pytest.approx(expected, rel=0, abs=1e-10)
    assert all(type(value) is float for value in values.values())


def calibration_error(logits, labels):
    return evaluation_metrics(logits, labels)["calibration_error"]


@pytest.mark.parametrize(("hits", "error"), [(8, 0.0), (6, 0.2), (10, 0.2), (0, 0.8)])
def test_calibration_error_of_ten_predictions_at_four_fifths(hits, error):
    labels = torch.tensor([0] * hits + [1] * (10 - hits))
    assert calibration_error(two_class_logits(0.8, 10), labels) == pytest.approx(error, abs=1e-12)


def test_calibration_error_weights_bins_by_their_examples():
    logits = torch.cat([two_class_logits(0.9, 3), two_class_logits(0.6, 1)])
    labels = torch.tensor([0, 0, 1, 0])
    expected = 0.75 * abs(2 / 3 - 0.9) + 0.25 * abs(1 - 0.6)
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_errors_of_opposite_sign_cancel_within_a_bin_only():
    logits, labels = two_class_logits(0.75, 4), torch.tensor([0, 0, 0, 1])
    assert calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)
    separate_bins = torch.cat([two_class_logits(0.55, 1), two_class_logits(0.95, 1)])
    assert calibration_error(separate_bins, torch.tensor([0, 1])) == pytest.approx((0.45 + 0.95) / 2, abs=1e-12)


def test_calibration_bins_are_closed_on_the_right():
    third = [0.0, 0.0, 0.0, -math.inf]  # confidence 1/3 = 5/15
    below = [math.log(0.3), *[math.log(0.7 / 3)] * 3]
    logits = torch.tensor([third, below], dtype=torch.float64)
    expected = abs((0 - 1 / 3) + (1 - 0.3)) / 2
    assert calibration_error(logits, torch.tensor([1, 0])) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("label", "error"), [(0, 0.0), (1, 1.0)])
def test_calibration_error_of_certainty(label, error):
    logits = torch.tensor([[1000.0, 0.0]] * 3)
    assert calibration_error(logits, torch.tensor([label] * 3)) == error


def test_uniform_logits_have_the_entropy_of_the_classes():
    values = evaluation_metrics(torch.zeros(4, 10), torch.tensor([0, 1, 2, 3]))
    assert values["nll"] == pytest.approx(math.log(10), abs=1e-12)


@pytest.mark.parametrize(("rank", "top1", "top5"), [(1, 1, 1), (2, 0, 1), (5, 0, 1), (6, 0, 0)])
def test_top_five_counts_the_first_five_ranks(rank, top1, top5):
    values = evaluation_metrics(-torch.arange(7.0)[None], torch.tensor([rank - 1]))
    assert (values["accuracy"], values["accuracy_top5"]) == (top1, top5)


@pytest.mark.parametrize(("num_classes", "reported"), [(2, False), (5, False), (6, True)])
def test_top_five_is_left_out_where_it_is_always_one(num_classes, reported):
    logits, labels = random_logits(10, num_classes, 0)
    assert ("accuracy_top5" in evaluation_metrics(torch.from_numpy(logits), torch.from_numpy(labels))) == reported


@settings(deadline=None)
@given(sizes=SIZES)
def test_top_five_of_equal_logits_takes_the_lower_classes_first(sizes):
    """Few values, so nearly every image has ties; NumPy's stable sort is the oracle."""
    logits, labels = random_logits(sizes[0], sizes[1] + 4, sizes[2])
    logits = logits.round()
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = (order[:, :5] == labels[:, None]).any(1).mean()
    values = evaluation_metrics(torch.from_numpy(logits), torch.from_numpy(labels))
    assert values["accuracy_top5"] == pytest.approx(expected, abs=1e-12)
    assert values["accuracy"] == pytest.approx((order[:, 0] == labels).mean(), abs=1e-12)


@pytest.mark.parametrize("place", [0, 3])
def test_a_nan_logit_is_not_among_the_first_five(place):
    logits = torch.zeros(1, 7)
    logits[0, place] = math.nan
    assert evaluation_metrics(logits, torch.tensor([place]))["accuracy_top5"] == 0


def test_accuracy_of_tied_logits_agrees_with_the_confusion_matrix():
    logits, labels = torch.zeros(10, 10), torch.zeros(10, dtype=torch.int64)
    accuracy = float(confusion_matrix(logits, labels).diag().sum()) / 10
    assert evaluation_metrics(logits, labels)["accuracy"] == accuracy


def test_half_precision_logits_are_evaluated_in_float64():
    logits, labels = random_logits(50, 10, 1)
    half = torch.from_numpy(logits).bfloat16()
    expected = -np.log(softmax(half.double().numpy()))[np.arange(50), labels].mean()
    assert evaluation_metrics(half, torch.from_numpy(labels))["nll"] == pytest.approx(expected, abs=1e-10)


@settings(deadline=None)
@given(sizes=SIZES)
def test_confusion_matrix_equals_a_count(sizes):
    logits, labels = random_logits(*sizes)
    expected = np.zeros((sizes[1], sizes[1]), np.int64)
    for label, prediction in zip(labels, logits.argmax(1), strict=True):
        expected[label, prediction] += 1
    result = confusion_matrix(torch.from_numpy(logits), torch.from_numpy(labels))
    assert result.dtype == torch.int64
    assert np.array_equal(result.numpy(), expected)


def test_confusion_matrix_has_true_classes_in_rows():
    assert confusion_matrix(predicting([2, 2, 0], 3), torch.tensor([1, 1, 0])).tolist() == [
        [1, 0, 0], [0, 0, 2], [0, 0, 0],
    ]  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(batch_sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_train_meter_sums_equal_numpy(batch_sizes, seed):
    random = np.random.default_rng(seed)
    meter, expected = TrainMeter(CPU), dict.fromkeys(SUMS, 0.0)
    for size in batch_sizes:
        logits = random.normal(size=(size, 4)).astype(np.float32)
        labels, clean = random.integers(0, 4, size), random.integers(0, 4, size)
        loss, perturbed, grad_norm, eps_norm = random.random(4, dtype=np.float32)
        perturbs = int(random.integers(0, 2))
        step = stats(
            torch.from_numpy(logits),
            loss=float(loss),
            loss_perturbed=float(perturbed),
            grad_norm=float(grad_norm),
            eps_norm=float(eps_norm),
            passes=1 + perturbs,
        )
        meter.add(step, torch.from_numpy(labels), torch.from_numpy(clean))
        prediction, corrupted = logits.argmax(1), labels != clean
        added = {
            "num_steps": 1,
            "num_images": size,
            "loss": size * float(loss),
            "grad_norm": float(grad_norm),
            "num_perturbed": perturbs,
            "num_images_perturbed": size * perturbs,
            "loss_unperturbed": size * float(loss) * perturbs,
            "loss_perturbed": size * float(perturbed) * perturbs,
            "eps_norm": float(eps_norm) * perturbs,
            "correct": (prediction == labels).sum(),
            "num_clean": (~corrupted).sum(),
            "correct_clean": (prediction == labels)[~corrupted].sum(),
            "num_corrupted": corrupted.sum(),
            "correct_corrupted": (prediction == labels)[corrupted].sum(),
            "recovered_corrupted": (prediction == clean)[corrupted].sum(),
        }
        expected = {name: expected[name] + float(added.get(name, 0)) for name in SUMS}
    assert meter.read_and_reset() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_train_meter_continues_from_its_sums_to_the_bit():
    random = np.random.default_rng(0)
    steps = [
        (stats(torch.from_numpy(random.normal(size=(3, 4)).astype(np.float32)), loss=float(random.random())),
         torch.from_numpy(random.integers(0, 4, 3)))
        for _ in range(7)
    ]  # fmt: skip
    whole = TrainMeter(CPU)
    for step, labels in steps:
        whole.add(step, labels, labels)
    first = TrainMeter(CPU)
    for step, labels in steps[:3]:
        first.add(step, labels, labels)
    second = TrainMeter(CPU, json.loads(json.dumps(first.read())))
    for step, labels in steps[3:]:
        second.add(step, labels, labels)
    assert second.read_and_reset() == whole.read_and_reset()


@pytest.mark.parametrize("bad", range(4))
def test_only_the_count_of_a_nonfinite_step_is_added(bad):
    meter = TrainMeter(CPU)
    meter.add(stats(predicting([0]), loss=3.0), torch.tensor([0]), torch.tensor([0]))
    finite = torch.ones(4, dtype=torch.bool)
    finite[bad] = False
    broken = dataclasses.replace(stats(predicting([0]), loss=math.nan, grad_norm=math.inf), finite=finite)
    meter.add(broken, torch.tensor([0]), torch.tensor([0]))
    sums = meter.read_and_reset()
    assert (sums["num_steps"], sums["loss"], sums["num_nonfinite"]) == (1, 3.0, 1)
    assert [sums[name] for name in SUMS[-4:]] == [float(index == bad) for index in range(4)]


def test_train_meter_starts_at_zero_after_read_and_reset():
    meter = TrainMeter(CPU)
    meter.add(stats(predicting([0]), loss=3.0), torch.tensor([0]), torch.tensor([0]))
    assert meter.read_and_reset()["loss"] == 3.0
    assert set(meter.read_and_reset().values()) == {0.0}


def test_train_metrics_split_clean_memorised_and_recovered():
    clean = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    labels = torch.tensor([0, 0, 1, 3, 0, 0, 0, 0])  # three clean, five corrupted
    prediction = [0, 0, 2, 3, 0, 2, 3, 1]  # two clean right; two memorised, two recovered, one neither
    meter = TrainMeter(CPU)
    meter.add(stats(predicting(prediction)), labels, clean)
    values = train_metrics(meter.read_and_reset())
    assert values["accuracy"] == 4 / 8
    assert values["accuracy_clean"] == pytest.approx(2 / 3, abs=1e-12)
    assert values["memorised"] == pytest.approx(2 / 5, abs=1e-12)
    assert values["recovered"] == pytest.approx(2 / 5, abs=1e-12)


def test_train_metrics_average_losses_over_images_and_norms_over_steps():
    meter = TrainMeter(CPU)
    for size, loss, norm in ((30, 1.0, 2.0), (10, 3.0, 4.0)):
        labels = torch.zeros(size, dtype=torch.int64)
        step = stats(predicting([0] * size), loss=loss, loss_perturbed=2 * loss, grad_norm=norm, eps_norm=norm / 4)
        meter.add(step, labels, labels)
    values = train_metrics(meter.read_and_reset())
    assert values == {
        "loss": 1.5, "accuracy": 1.0, "grad_norm": 3.0, "loss_perturbed": 3.0, "loss_gap": 1.5, "eps_norm": 0.75,
    }  # fmt: skip


def test_sharpness_is_that_of_the_steps_with_a_second_pass():
    meter, labels = TrainMeter(CPU), torch.tensor([0])
    for passes, loss, perturbed, eps_norm in ((1, 5.0, 5.0, 0.0), (2, 2.0, 2.5, 0.1), (1.5, 1.0, 1.25, 0.3)):
        step = stats(predicting([0]), passes, loss=loss, loss_perturbed=perturbed, eps_norm=eps_norm)
        meter.add(step, labels, labels)
    values = train_metrics(meter.read_and_reset())
    assert values["loss"] == pytest.approx(8 / 3)
    assert (values["loss_perturbed"], values["loss_gap"]) == (1.875, 0.375)
    assert values["eps_norm"] == pytest.approx(0.2)


def test_train_metrics_of_one_pass_without_noise_have_no_metrics_of_either():
    meter = TrainMeter(CPU)
    meter.add(stats(predicting([0]), passes=1, loss=3.0), torch.tensor([0]), torch.tensor([0]))
    assert set(train_metrics(meter.read_and_reset())) == {"loss", "accuracy", "grad_norm"}


def test_train_metrics_where_every_label_is_corrupted():
    meter = TrainMeter(CPU)
    meter.add(stats(predicting([1, 2])), torch.tensor([1, 1]), torch.tensor([0, 2]))
    values = train_metrics(meter.read_and_reset())
    assert (values["accuracy_clean"], values["memorised"], values["recovered"]) == (0.0, 0.5, 0.5)
