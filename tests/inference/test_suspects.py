"""The ranking of labels by self-confidence, its quality, and the page of the first images."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from sam_runner.data.image_sets import ImageSet
from sam_runner.inference.contact_sheet import render_contact_sheet
from sam_runner.inference.predictions import Examples, Predictions
from sam_runner.inference.suspects import (
    Suspects,
    average_precision,
    describe_ranking,
    find_memorising_runs,
    precision_at,
    suspects_table,
)


@pytest.mark.parametrize("num_levels", [2, 5, 1000])
def test_average_precision_is_that_of_scikit_learn(num_levels):
    draws = np.random.default_rng(num_levels)
    for size in (1, 2, 7, 300):
        for _ in range(20):
            score = draws.integers(0, num_levels, size) / num_levels  # few levels: many equal scores
            is_wrong = draws.random(size) < 0.3
            is_wrong[draws.integers(size)] = True
            expected = average_precision_score(is_wrong, score)
            assert average_precision(torch.tensor(is_wrong), torch.tensor(score)) == pytest.approx(expected, abs=1e-12)


def test_precision_counts_the_first_images():
    ranked = torch.tensor([True, False, True, False])
    assert [precision_at(ranked, depth) for depth in (1, 2, 3, 4)] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])


def suspects_of(probabilities, labels, clean, classes=("a", "b")):
    labels, clean = torch.tensor(labels), torch.tensor(clean)
    examples = Examples("index", tuple(str(10 * n) for n in range(len(labels))), classes, labels, clean)
    logits = torch.tensor(probabilities).log()
    self_confidence = torch.tensor([row[label] for row, label in zip(probabilities, labels, strict=True)])
    return Suspects(Predictions(examples, {Path("run"): logits}), self_confidence, self_confidence.argsort(stable=True))


def test_the_table_and_the_line_are_in_the_order_of_the_ranking():
    found = suspects_of([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1], [0, 1, 1])
    table = suspects_table(found)
    assert table["rank"].tolist() == [1, 2, 3] and table["index"].tolist() == ["10", "20", "0"]
    assert table["label"].tolist() == ["a", "b", "a"] and table["clean_label"].tolist() == ["b", "b", "a"]
    assert table["predicted"].tolist() == ["b", "a", "a"]
    assert table["self_confidence"].tolist() == pytest.approx([0.2, 0.4, 0.9])
    assert table["confidence"].tolist() == pytest.approx([0.8, 0.6, 0.9])
    assert describe_ranking(found) == (
        "precision at 3 0.3333, average precision 1.0000, 1 of 3 labels are wrong (0.3333)"
    )
    unknown = suspects_of([[0.9, 0.1], [0.2, 0.8]], [0, 0], [0, 0])
    assert describe_ranking(unknown) == "" and "clean_label" not in suspects_table(unknown)


def test_a_run_that_predicts_its_labels_is_named():
    labels = torch.zeros(100, dtype=torch.int64)
    examples = Examples("index", tuple(map(str, range(100))), ("a", "b"), labels, labels)
    logits = {Path(str(wrong)): torch.zeros(100, 2) for wrong in (4, 5, 6)}
    for folder, values in logits.items():
        values[int(str(folder)) :, 0] = 1.0
        values[: int(str(folder)), 1] = 1.0
    assert find_memorising_runs(Predictions(examples, logits)) == {Path("4"): pytest.approx(0.96)}


def test_the_page_shows_the_first_images_and_escapes_text():
    count = 60
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 4, 4).contiguous()
    probabilities = [[1 - (n + 1) / 100, (n + 1) / 100] for n in range(count)]
    found = suspects_of(probabilities, [1] * count, [0] * count, ("<b>", "a&b"))
    labels = found.predictions.examples.labels
    page = render_contact_sheet(found, ImageSet(images, labels, ("<b>", "a&b"), labels), "A <title>", "note")
    assert "<b>" not in page and page.count("&lt;b&gt;") == 100 and "A &lt;title&gt;" in page
    assert page.count("<img") == page.count("data:image/png;base64,") == 50
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert re.findall(r"<div class=\"name\">(\d+): (\d+)</div>", page)[:2] == [("1", "0"), ("2", "10")]
