"""The settings model.weights, head_lr and freeze_batchnorm_stats: files, checkpoints, torchvision, timm."""

import logging
import urllib.error
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from sam_runner.models.pretrained import find_head
from sam_runner.models.torchvision_timm import torchvision_model
from sam_runner.runs.load import restore_run
from sam_runner.training.builders.run import build_run
from sam_runner.training.evaluation import evaluate
from sam_runner.utils.errors import InputError
from tests.helpers import TINY, config_of, train_tiny
from tests.models.test_models_finetune import make_model

IMAGES = ("data=synthetic", "data.num_train=8", "data.num_test=8", "data.image_size=32", "batch_size=8", "device=cpu")
TINIEST = "shufflenet_v2_x0_5"
tiny_settings = cache(lambda: config_of(*TINY))  # cached: composing takes longer than the rest of a test
torchvision_settings = cache(lambda: config_of(*IMAGES, "model=torchvision", f"model.name={TINIEST}"))
timm_settings = cache(lambda: config_of(*IMAGES, "model=timm", "model.name=test_resnet"))


def build(base_settings, weights=None, **changes):
    config = base_settings()
    model = replace(config.model, weights=weights and str(weights), **changes.pop("model", {}))
    return build_run(replace(config, model=model, **changes))


def build_tiny(weights=None, **changes):
    return build(tiny_settings, weights, **changes).model


def write_weights(folder, kind, state):
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "net.backbone."])
def test_a_file_gives_every_weight_and_buffer(kind, prefix, tmp_path):
    state = make_model().state_dict()
    given = {f"{prefix}{key}": value for key, value in state.items()}
    found = build_tiny(write_weights(tmp_path, kind, given)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_a_prefix_of_some_names_is_not_removed(tmp_path):
    state = {f"module.{key}": value for key, value in make_model().state_dict().items()} | {"head": torch.zeros(2)}
    with pytest.raises(InputError, match=r"missing: features\.0\.weight"):
        build_tiny(write_weights(tmp_path, "torch", state))


def test_a_head_of_other_classes_is_initialised_by_the_seed_and_the_log_says_so(tmp_path, caplog):
    path = write_weights(tmp_path, "torch", make_model(num_classes=9).state_dict())
    untrained = build_tiny()
    with caplog.at_level(logging.INFO, "sam_runner"):
        found = build_tiny(path)
    assert torch.equal(found.features[0].weight, make_model(num_classes=9).features[0].weight)
    assert torch.equal(found.head[0].weight, untrained.head[0].weight)
    assert "the head head.0 is newly initialised" in caplog.text


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("write_file", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"no weights"), "holds more than tensors"),
        (lambda path: torch.save({"weight": Harmful()}, path), "holds more than tensors"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds no state_dict"),
        (lambda path: torch.save({"epochs": 3}, path), "holds no state_dict"),
        (lambda path: torch.save({}, path), "holds no state_dict"),
    ],
)
def test_other_files_are_refused(write_file, message, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    write_file(path)
    with pytest.raises(InputError, match=message):
        build_tiny(path)
    assert "run" not in capsys.readouterr().out


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="not a safetensors file"):
        build_tiny(path)


def test_training_starts_from_an_intact_checkpoint_and_evaluation_needs_no_file(tmp_path):
    first = train_tiny(tmp_path / "first", "epochs=1")
    checkpoint = sorted((first / "checkpoints").glob("*.pt"))[-1]
    weights = torch.load(checkpoint, weights_only=True)["model"]
    found = build_tiny(checkpoint).state_dict()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    start = tmp_path / "start.pt"
    start.write_bytes(checkpoint.read_bytes())
    second = train_tiny(tmp_path / "second", "epochs=1", f"model.weights={start}")
    start.unlink()
    assert "test/accuracy" in evaluate(restore_run(second, "last"))
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        build_tiny(checkpoint)


def test_heads_of_torchvision():
    heads = {
        "resnet18": "fc",
        "efficientnet_b0": "classifier.1",
        "vit_b_32": "heads.head",
        "squeezenet1_1": "classifier.1",
        "densenet121": "classifier",
    }
    with torch.device("meta"):
        assert {name: find_head(torchvision_model(9, name=name), 9) for name in heads} == heads


def test_weights_of_torchvision_come_from_its_cache(tmp_path, monkeypatch):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    model = torchvision_model(1000, name=TINIEST)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    for source in ("torchvision", "torchvision:IMAGENET1K_V1"):
        found = build(torchvision_settings, source).model
        assert torch.equal(found.conv1[0].weight, model.conv1[0].weight)
        assert found.fc.weight.shape == (10, 1024)


def test_weights_of_timm_are_those_of_its_pretrained_network(monkeypatch):
    timm = pytest.importorskip("timm")
    created, create_model = [], timm.create_model

    def record_model(name, *, pretrained, **options):
        model = create_model(name, **options)
        created.append((pretrained, options["num_classes"], model))
        return model

    monkeypatch.setattr(timm, "create_model", record_model)
    found = build(timm_settings, "timm").model
    assert [entry[:2] for entry in created] == [(False, 10), (True, None)]
    assert found is created[0][2]
    assert found.get_classifier().out_features == 10
    assert torch.equal(found.conv1[0].weight, created[1][2].conv1[0].weight)


@pytest.mark.parametrize(
    ("base_settings", "weights", "message"),
    [
        (
            torchvision_settings,
            "torchvision",
            "could not be downloaded: .*no way.*\n  put the file at .*shufflenet.*, or name it",
        ),
        (torchvision_settings, "torchvision:IMAGENET1K_V9", "does not exist\n  accepted: IMAGENET1K_V1"),
        (torchvision_settings, "timm", "for networks of timm"),
        (tiny_settings, "torchvision", "for networks of torchvision"),
        (timm_settings, "timm", "timm has no weights for test_resnet"),
    ],
)
def test_unavailable_weights_are_an_input_error(base_settings, weights, message, tmp_path, monkeypatch):
    def fail_to_connect(*arguments, **options):
        raise urllib.error.URLError("no way")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail_to_connect)
    if base_settings is timm_settings:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        build(base_settings, weights)


def test_the_head_has_its_own_learning_rate():
    run = build(tiny_settings, head_lr=0.7)
    body, head = run.step.optimizer.param_groups
    assert (body["initial_lr"], head["initial_lr"]) == (tiny_settings().lr, 0.7)
    assert [id(param) for param in head["params"]] == [id(param) for param in run.model.head.parameters()]
    assert len(body["params"]) + len(head["params"]) == len(list(run.model.parameters()))


def test_a_run_with_a_rate_for_the_head_continues_to_the_same_bytes(tmp_path, caplog):
    caplog.set_level(logging.INFO, "sam_runner")
    options = ("head_lr=0.2", "optimizer=sam", "freeze_batchnorm_stats=true", "schedule=constant")
    whole = train_tiny(tmp_path / "whole", *options)
    part = train_tiny(tmp_path / "part", *options, "max_steps=6")
    train_tiny(part, *options)
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    log = (whole / "run.log").read_text()
    assert f"head head.0: learning rate 0.2, other layers {tiny_settings().lr:g}\n" in log


def test_freezing_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="freeze_batchnorm_stats has no effect"):
        build_tiny(freeze_batchnorm_stats=True, model={"batch_norm": False})
