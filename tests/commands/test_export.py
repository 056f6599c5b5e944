"""sam-export: the files in other programs' hands, the check of the difference, refusals."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sam_runner
from sam_runner.commands.inference import export
from sam_runner.inference import export as work
from sam_runner.runs.load import load_network
from sam_runner.utils.errors import InputError
from tests.helpers import invoke, train_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny network with batch norm, with a normalisation that differs from the identity."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", "data.channels=3", "epochs=1", "precision=fp32")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    return lambda *words: invoke(monkeypatch, capsys, tmp_path, *words, entry=export.main)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def logits_of(run, pixels):
    """Logits of the network of the run, with the normalisation written out."""
    found = sam_runner.load_run(run)
    mean, std = (np.array(values)[:, None, None] for values in (found.model_facts.normalisation.mean,
                                                                found.model_facts.normalisation.std))  # fmt: skip
    with torch.no_grad():
        return found.model()(torch.from_numpy((pixels.numpy() - mean) / std).float())


def normalised(run, pixels):
    facts = sam_runner.load_run(run).model_facts.normalisation
    return (pixels - torch.tensor(facts.mean)[:, None, None]) / torch.tensor(facts.std)[:, None, None]


def test_safetensors_hold_weights_and_facts_and_start_another_run(run, call, tmp_path):
    done = call(run, "--format", "safetensors", "--out", "a/model.safetensors")
    assert done.returncode == 0, done.stderr
    assert "largest difference of a logit 0 (tolerance" in done.stdout
    saved = torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True)["model"]
    with safe_open(tmp_path / "a/model.safetensors", "pt") as file:
        assert set(file.keys()) == set(saved)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in saved.items())
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    assert metadata["classes"] == [f"class {label}" for label in range(4)]
    assert metadata["input_shape"] == [3, 8, 8] and metadata["normalisation"] == "outside"
    assert metadata["model"]["_target_"].endswith("SmallCNN") and metadata["model"]["width"] == 4
    stored = json.loads((run / "normalisation.json").read_text())
    assert (metadata["mean"], metadata["std"]) == (stored["mean"], stored["std"])
    words = ("data.channels=3", f"model.weights={tmp_path / 'a/model.safetensors'}", "lr=1e-30", "weight_decay=0")
    again = train_tiny(tmp_path / "again", *words, "max_steps=1", "epochs=1", "data.data_seed=5")
    started = torch.load(max((again / "checkpoints").glob("*.pt")), weights_only=True)["model"]
    assert all(torch.equal(started[name], value) for name, value in saved.items() if name.endswith("weight"))
    assert json.loads((again / "normalisation.json").read_text()) == stored | {"source": "weights"}


def test_a_program_of_torch_export_has_the_logits_of_the_network(run, call, tmp_path, pixels):
    done = call(run, "--format", "torch-export", "--out", "model.pt2")
    assert done.returncode == 0, done.stderr
    extra = {"model.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    inputs = normalised(run, pixels)
    assert torch.allclose(program(inputs), logits_of(run, pixels), atol=1e-5)
    assert torch.allclose(program(inputs[:1]), logits_of(run, pixels[:1]), atol=1e-5)
    facts = json.loads(extra["model.json"])
    assert facts["classes"][1] == "class 1" and facts["normalisation"] == "outside"
    printed = re.search(
        r"\ninput: float32 images \(N, 3, 8, 8\), \(pixel values in \[0, 1\] - mean\) / std; mean (.*), std (.*)\n",
        done.stdout,
    )
    for name, text in zip(("mean", "std"), printed.groups(), strict=True):
        assert [float(word) for word in text.split()] == pytest.approx(facts[name], rel=1e-3)


def test_onnx_runtime_has_the_logits_of_the_network(run, call, tmp_path, pixels):
    import onnx
    import onnxruntime

    done = call(run, "--format", "onnx", "--normalisation", "inside", "--out", "model.onnx")
    assert done.returncode == 0, done.stderr
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = pixels.numpy()
    (logits,) = session.run(None, {"images": inputs})
    assert logits == pytest.approx(logits_of(run, pixels).numpy(), abs=1e-5)
    assert session.run(None, {"images": inputs[:1]})[0] == pytest.approx(logits[:1], abs=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["input_shape"]) == [3, 8, 8] and json.loads(facts["normalisation"]) == "inside"
    assert "\ninput: float32 images (N, 3, 8, 8), pixel values in [0, 1]\n" in done.stdout
    assert float(done.stdout.split("logit ")[1].split()[0]) < 1e-5


def test_the_description_of_the_input_names_its_number_format(run):
    network = load_network(run, "last", "cpu")
    network = replace(network, format_options={**network.format_options, "dtype": torch.float64})
    assert work._describe_input(network, normalised_inside=True).startswith("float64 images (N, 3, 8, 8), pixel")


def test_a_network_that_differs_is_not_written(run, call, monkeypatch, tmp_path):
    write = work._write_safetensors

    def disturbed(*arguments):
        content, compute = write(*arguments)
        return content, lambda images: compute(images) + 0.01

    monkeypatch.setitem(work._WRITERS, "safetensors", disturbed)
    done = call(run, "--format", "safetensors", "--out", "model.safetensors")
    assert done.returncode == 1 and "differ by 0.01" in done.stderr and not (tmp_path / "model.safetensors").exists()
    monkeypatch.setitem(work._WRITERS, "safetensors", lambda *_: (b"", lambda images: torch.full((1, 4), torch.nan)))
    assert "differ by nan" in call(run, "--format", "safetensors", "--out", "model.safetensors").stderr


def test_a_network_that_cannot_be_exported_is_refused(run, monkeypatch):
    class Branching(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] if images.sum() > 0 else images.flatten(1)[:, 4:8]

    network = replace(load_network(run, "last", "cpu"), model=Branching())
    monkeypatch.setattr(work, "load_network", lambda *_: network)
    with pytest.raises(InputError, match="torch-export cannot express the network"):
        work.export_network(run, "torch-export", "last")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN",), "the following arguments are required: --format"),
        (("RUN", "--format", "onyx"), "invalid choice"),
        (("RUN", "--format", "onnx", "--out", "model.pt2"), "is not the name of a .onnx file"),
        (("RUN", "--format", "safetensors", "--normalisation", "inside"), "has no effect with --format safetensors"),
        (("NOWHERE", "--format", "onnx"), "holds no run"),
        (("RUN", "RUN", "--format", "onnx"), "sam-export takes one RUN: call it once for each"),
        (("RUN", "--format", "onnx", "two", "three"), "unrecognized arguments: two three\n"),
    ],
)
def test_bad_input_is_refused(run, call, tmp_path, words, message):
    done = call(*({"RUN": run, "NOWHERE": tmp_path}.get(word, word) for word in words))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_existing_file_is_kept_and_missing_packages_are_named(run, call, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("mine")
    done = call(run, "--format", "onnx", "--out", "model.onnx")
    assert done.returncode == 2 and "--overwrite" in done.stderr and (tmp_path / "model.onnx").read_text() == "mine"
    monkeypatch.setattr(work.importlib.util, "find_spec", lambda name: None)
    done = call(run, "--format", "onnx")
    assert done.returncode == 2 and "pip install onnx onnxscript onnxruntime" in done.stderr
