"""Weights to start from, through the settings: files, checkpoints, torchvision, timm; and the keys beside them."""

import copy
import logging
import urllib.error
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from sam_runner.models.pretrained import head_of
from sam_runner.models.published import torchvision_model
from sam_runner.runs.load import evaluate_folder
from sam_runner.training.build import build_run
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of, train_tiny
from tests.models.test_models_finetune import small

IMAGES = ("data=synthetic", "data.num_train=8", "data.num_test=8", "data.image_size=32", "batch_size=8", "device=cpu")
TINIEST = "shufflenet_v2_x0_5"
tiny = cache(lambda: config_of(*TINY))  # composing takes longer than all else here
images = cache(lambda: config_of(*IMAGES, "model=torchvision", f"model.name={TINIEST}"))
timm_images = cache(lambda: config_of(*IMAGES, "model=timm", "model.name=test_resnet"))


def run_of(base, weights=None, **changes):
    settings = copy.deepcopy(base())
    settings["model"] |= {"weights": weights and str(weights)} | changes.pop("model", {})
    return build_run(settings | changes)


def model_of(weights=None, **changes):
    return run_of(tiny, weights, **changes).model


def write(folder, kind, state):
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested", "parallel"])
def test_a_file_gives_every_weight_and_buffer(kind, tmp_path):
    state = small().state_dict()
    given = {f"module.{key}": value for key, value in state.items()} if kind == "parallel" else state
    found = model_of(write(tmp_path, kind, given)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_a_head_of_other_classes_is_initialised_by_the_seed_and_the_log_says_so(tmp_path, caplog):
    path = write(tmp_path, "torch", small(num_classes=9).state_dict())
    fresh = model_of()
    with caplog.at_level(logging.INFO, "sam_runner"):
        found = model_of(path)
    assert torch.equal(found.features[0].weight, small(num_classes=9).features[0].weight)
    assert torch.equal(found.head[0].weight, fresh.head[0].weight)
    assert "the head head.0 is fresh" in caplog.text


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("write_file", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no weights"), "holds more than tensors"),
        (lambda path: torch.save({"weight": Harmful()}, path), "holds more than tensors"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds no state_dict"),
        (lambda path: torch.save({"epochs": 3}, path), "holds no state_dict"),
        (lambda path: torch.save({}, path), "holds no state_dict"),
    ],
)
def test_other_files_are_refused(write_file, said, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    write_file(path)
    with pytest.raises(InputError, match=said):
        model_of(path)
    assert "run" not in capsys.readouterr().out


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="no safetensors file"):
        model_of(path)


def test_a_checkpoint_is_a_start_unless_it_is_damaged_and_evaluation_needs_no_file(tmp_path):
    first = train_tiny(tmp_path / "first", "epochs=1")
    checkpoint = sorted((first / "checkpoints").glob("*.pt"))[-1]
    weights = torch.load(checkpoint, weights_only=True)["model"]
    found = model_of(checkpoint).state_dict()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    start = tmp_path / "start.pt"
    start.write_bytes(checkpoint.read_bytes())
    second = train_tiny(tmp_path / "second", "epochs=1", f"model.weights={start}")
    start.unlink()
    assert "test/accuracy" in evaluate_folder(second, "last")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        model_of(checkpoint)


def test_heads_of_torchvision():
    heads = {
        "resnet18": "fc",
        "efficientnet_b0": "classifier.1",
        "vit_b_32": "heads.head",
        "squeezenet1_1": "classifier.1",
        "densenet121": "classifier",
    }
    with torch.device("meta"):
        assert {name: head_of(torchvision_model(9, name=name), 9) for name in heads} == heads


def test_weights_of_torchvision_come_from_its_cache(tmp_path, monkeypatch):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    model = torchvision_model(1000, name=TINIEST)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    for source in ("torchvision", "torchvision:IMAGENET1K_V1"):
        found = run_of(images, source).model
        assert torch.equal(found.conv1[0].weight, model.conv1[0].weight)
        assert found.fc.weight.shape == (10, 1024)


def test_weights_of_timm_are_those_of_its_pretrained_network(monkeypatch):
    timm = pytest.importorskip("timm")
    made, create = [], timm.create_model

    def pretrained(name, *, pretrained, **options):
        model = create(name, **options)
        made.append((pretrained, options["num_classes"], model))
        return model

    monkeypatch.setattr(timm, "create_model", pretrained)
    found = run_of(timm_images, "timm").model
    assert [part[:2] for part in made] == [(False, 10), (True, None)]
    assert found is made[0][2]
    assert found.get_classifier().out_features == 10
    assert torch.equal(found.conv1[0].weight, made[1][2].conv1[0].weight)


@pytest.mark.parametrize(
    ("base", "weights", "said"),
    [
        (images, "torchvision", "cannot be had: .*no way.*\n  put the file at .*shufflenet.*, or give"),
        (images, "torchvision:IMAGENET1K_V9", "does not exist\n  accepted: IMAGENET1K_V1"),
        (images, "timm", "for networks of timm"),
        (tiny, "torchvision", "for networks of torchvision"),
        (timm_images, "timm", "timm has no weights for test_resnet here"),
    ],
)
def test_weights_that_cannot_be_had_are_told(base, weights, said, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise urllib.error.URLError("no way")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    if base is timm_images:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=said):
        run_of(base, weights)


def test_the_head_has_a_rate_of_its_own():
    run = run_of(tiny, head_lr=0.7)
    body, head = run.step.optimizer.param_groups
    assert (body["initial_lr"], head["initial_lr"]) == (tiny()["lr"], 0.7)
    assert [id(param) for param in head["params"]] == [id(param) for param in run.model.head.parameters()]
    assert len(body["params"]) + len(head["params"]) == len(list(run.model.parameters()))


def test_a_run_with_a_rate_for_the_head_continues_to_the_same_bytes(tmp_path):
    options = ("head_lr=0.2", "optimizer=sam", "freeze_batchnorm_stats=true", "schedule=constant")
    whole = train_tiny(tmp_path / "whole", *options)
    part = train_tiny(tmp_path / "part", *options, "max_steps=6")
    train_tiny(part, *options)
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_freezing_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="freeze_batchnorm_stats has no effect"):
        model_of(freeze_batchnorm_stats=True, model={"batch_norm": False})
