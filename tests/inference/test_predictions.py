"""The mean of several runs' probabilities, and which sets of examples are the same."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sam_runner.data.normalisation import Normalisation
from sam_runner.inference import predictions
from sam_runner.inference.image_files import UNKNOWN, FoundFiles
from sam_runner.inference.predictions import Examples, difference, mean_log_probabilities
from sam_runner.utils.errors import InputError


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


def test_runs_that_read_different_files_are_refused(monkeypatch, tmp_path):
    """Each network can read one of the two images; their logits would belong to different images."""
    shapes = {Path("wide"): (3, 4, 6), Path("high"): (3, 6, 4)}
    paths = tuple(tmp_path / f"{name}.png" for name in shapes)
    for path, (_, height, width) in zip(paths, shapes.values(), strict=True):
        Image.new("RGB", (width, height)).save(path)

    def load(folder, *_):
        facts = SimpleNamespace(input_shape=shapes[folder], require_images=lambda folder: None)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, 2))
        options = {"normalisation": Normalisation((0.0,) * 3, (1.0,) * 3), "device": torch.device("cpu")}
        config = SimpleNamespace(data=None)
        return SimpleNamespace(facts=facts, model=model, config=config, autocast_dtype=None, format_options=options)

    monkeypatch.setattr(predictions, "load_network", load)
    monkeypatch.setattr(predictions, "require_same_classes", lambda folders: ("a", "b"))
    files = FoundFiles(paths, (UNKNOWN,) * 2)
    found, faults = predictions.predict_files([Path("wide")], files, "last")
    assert found.examples.names == (str(paths[0]),) and len(faults) == 1
    with pytest.raises(InputError, match="high cannot read the same images as wide"):
        predictions.predict_files(list(shapes), files, "last")
