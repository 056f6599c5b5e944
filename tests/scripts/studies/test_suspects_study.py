"""The study of sam-suspects and cleanlab: its rows, its comparisons, and the part of docs/predict.md."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from sklearn.metrics import average_precision_score

from sam_runner.inference.predictions import Examples, Predictions
from scripts.studies import suspects_study


def predictions_of(seed, num_images=300, num_classes=4):
    """Random logits that favour the clean labels; a third of the given labels are others."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(num_classes, (num_images,), generator=generator)
    labels = torch.where(torch.rand(num_images, generator=generator) < 0.3, (clean + 1) % num_classes, clean)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits += 2 * torch.nn.functional.one_hot(clean, num_classes)
    classes = tuple("abcd"[:num_classes])
    return Predictions(
        Examples("index", tuple(map(str, range(num_images))), classes, labels, clean), {Path("r"): logits}
    )


def test_each_ranking_has_its_quality(monkeypatch):
    predictions = predictions_of(0)
    examples, probabilities = predictions.examples, predictions.log_probabilities.exp()
    is_wrong = examples.labels != examples.clean_labels
    other = torch.arange(300.0)
    is_found = other >= 290
    monkeypatch.setattr(
        suspects_study, "rank_with_cleanlab", lambda *_: ({"other": other, suspects_study.FILTER: other}, is_found)
    )
    rows = {row["ranking"]: row for row in suspects_study.measure(predictions)}
    assert list(rows) == [suspects_study.OURS, "other", suspects_study.FILTER]
    score = -probabilities[torch.arange(300), examples.labels]
    for name, values in ((suspects_study.OURS, score), ("other", other)):
        order = np.argsort(-values.numpy(), kind="stable")
        assert rows[name]["average_precision"] == pytest.approx(average_precision_score(is_wrong, values))
        assert rows[name]["precision_at_100"] == pytest.approx(is_wrong.numpy()[order[:100]].mean())
        assert "precision_at_1000" not in rows[name]  # there are 300 images
    assert rows["other"]["wrong"] == int(is_wrong.sum()) and rows["other"]["images"] == 300
    assert rows[suspects_study.FILTER]["found"] == 10
    assert rows[suspects_study.FILTER]["found_wrong"] == int(is_wrong[290:].sum())


def table_of(values):
    """A table with the average precisions by (optimizer, checkpoint, ranking) of the seeds 0, 1, ..."""
    rows = [
        {
            "noise": "worst", "optimizer": optimizer, "rho": 0.2 * (optimizer == "sam"), "part": "train", "wrong": 40,
            "checkpoint": checkpoint, "ranking": ranking, "seed": str(seed), "average_precision": value,
        }
        for (optimizer, checkpoint, ranking), found in values.items()
        for seed, value in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_difference_is_bold_only_if_its_interval_excludes_zero():
    clear, unclear, base = (0.7, 0.72, 0.71), (0.55, 0.4, 0.66), (0.5, 0.51, 0.52)
    results = suspects_study.Results(
        table_of({("sgd", "last", "a"): base, ("sgd", "last", "b"): clear, ("sgd", "last", "c"): unclear})
    )
    one, other, third = ({"optimizer": "sgd", "checkpoint": "last", "ranking": name} for name in "bac")
    low, high = scipy.stats.ttest_rel(clear, base).confidence_interval(0.95)
    assert results.compare(one, other) == f"**{(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}**"
    assert results.compare(other, one).startswith("**-0.200")
    assert "*" not in results.compare(third, other)
    shifted = [value + 0.25 for value in base]  # a spread of 0 has no test
    constant = suspects_study.Results(table_of({("sgd", "last", "a"): base, ("sgd", "last", "b"): shifted}))
    assert constant.compare(one, other) == "+0.250 ± 0.000"
    single = suspects_study.Results(table_of({("sgd", "last", "a"): (0.5,), ("sgd", "last", "b"): (0.9,)}))
    assert single.compare(one, other) == "+0.400"


def test_only_the_part_between_the_marks_is_replaced():
    page = f"before\n{suspects_study.BEGIN}\nold\n{suspects_study.END}\nafter\n"
    new = suspects_study.replace_part(page, "new")
    assert "old" not in new and new.startswith("before\n") and new.endswith("\nafter\n") and "\nnew\n" in new
    assert suspects_study.replace_part(new, "new") == new


def test_the_page_says_what_the_csv_file_says(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["suspects_study.py", "--check"])
    assert suspects_study.main() == 0, "run python scripts/studies/suspects_study.py --page"
    assert suspects_study.PAGE.read_text().count(suspects_study.BEGIN) == 1
