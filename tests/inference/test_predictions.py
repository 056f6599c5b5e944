"""The mean of several runs' probabilities, and which sets of examples are the same."""

import math

import pytest
import torch

from sam_runner.inference.predictions import Examples, difference, mean_log_probabilities


def test_the_mean_is_of_probabilities_and_does_not_underflow():
    one, other = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    assert mean_log_probabilities([one]).exp().tolist() == [pytest.approx([0.25, 0.75], abs=1e-7)]
    assert mean_log_probabilities([one, other]).exp().tolist() == [pytest.approx([0.375, 0.625], abs=1e-7)]
    far = torch.tensor([[0.0, 1000.0]])
    assert mean_log_probabilities([far]).tolist() == [[-1000.0, 0.0]]
    assert mean_log_probabilities([far, far]).tolist() == [pytest.approx([-1000.0, 0.0], abs=1e-12)]


def test_sets_of_examples_are_compared():
    labels = torch.tensor([0, 1])
    one = Examples("index", ("0", "1"), ("a", "b"), labels, labels)
    assert difference(one, one) == ""
    assert difference(one, Examples("index", ("0", "1"), ("a", "c"), labels, labels)) == "other classes"
    assert difference(one, Examples("index", ("0", "2"), ("a", "b"), labels, labels)) == "other images"
    assert difference(one, Examples("index", ("0",), ("a", "b"), labels[:1], labels[:1])) == "2 and 1 images"
    assert difference(one, Examples("index", ("0", "1"), ("a", "b"), labels, labels.flip(0))) == "other images"
    assert difference(one, Examples("index", ("0", "1"), ("a", "b"), labels.flip(0), labels)).startswith("other labels")
