"""Fine-tuning: weights to start from, a fresh head, a rate for it, frozen statistics of batch norm."""

import copy
import logging
import urllib.error

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sam_runner.batchnorm import freeze
from sam_runner.build import build_run
from sam_runner.errors import InputError
from sam_runner.evaluation import evaluate_folder
from sam_runner.models.small import SmallCNN
from sam_runner.objective import Batch
from sam_runner.pretrained import head_of, load_weights
from tests.commands import TINY, settings_of, train

CLASSES = 4  # of TINY


def small(num_classes=CLASSES, seed=1):
    torch.manual_seed(seed)
    model = SmallCNN(num_classes, 1, width=4)
    for values in model.buffers():
        if values.is_floating_point():
            values.uniform_(0.5, 2)
    return model


def model_of(*overrides):
    return build_run(settings_of(*TINY, *overrides)).model


def write(folder, kind, state):
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested"])
def test_a_file_gives_every_weight_and_buffer(kind, tmp_path):
    state = small().state_dict()
    path = write(tmp_path, kind, state)
    found = model_of(f"model.weights={path}").state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_names_of_data_parallel_training_are_understood(tmp_path):
    state = small().state_dict()
    path = write(tmp_path, "torch", {f"module.{key}": value for key, value in state.items()})
    assert torch.equal(model_of(f"model.weights={path}").features[0].weight, state["features.0.weight"])


def test_a_head_of_other_classes_is_fresh_and_the_rest_is_loaded(tmp_path, caplog):
    path = write(tmp_path, "torch", small(num_classes=9).state_dict())
    fresh = model_of()
    with caplog.at_level(logging.INFO, "sam_runner"):
        found = model_of(f"model.weights={path}")
    assert torch.equal(found.features[0].weight, small(num_classes=9).features[0].weight)
    assert torch.equal(found.head[0].weight, fresh.head[0].weight)
    assert torch.equal(found.head[0].bias, fresh.head[0].bias)
    assert "the head head.0 is fresh" in caplog.text


def test_a_head_is_taken_whole_or_not_at_all():
    state = small(num_classes=9).state_dict()
    state["head.0.bias"] = torch.full((CLASSES,), 5.0)
    model = small(seed=2)
    load_weights(model, state, "here", CLASSES)
    assert not bool((model.head[0].bias == 5).any())
    del state["head.0.weight"], state["head.0.bias"]
    assert "fresh" in load_weights(model, state, "here", CLASSES)


def test_every_key_that_does_not_fit_is_named(tmp_path):
    state = small().state_dict()
    state["odd"] = state.pop("features.0.weight")
    state["features.3.weight"] = torch.zeros(2, 2)
    path = write(tmp_path, "torch", state)
    with pytest.raises(InputError) as caught:
        model_of(f"model.weights={path}")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"model.weights={path} does not fit the model"
    assert "missing: features.0.weight (4, 1, 3, 3)" in lines[1]
    assert "not in the model: odd (4, 1, 3, 3)" in lines[2]
    assert "features.3.weight: (2, 2) given, (4, 4, 3, 3) needed" in lines[3]


def test_many_keys_that_do_not_fit_are_counted():
    with pytest.raises(InputError) as caught:
        load_weights(small(), {"head.0.weight": torch.zeros(4, 8), "head.0.bias": torch.zeros(4)}, "here", CLASSES)
    lines = str(caught.value).splitlines()
    assert len(lines) == 14
    assert lines[-1] == "  and 12 more"


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("write_file", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no weights"), "holds more than tensors"),
        (lambda path: torch.save({"weight": Harmful()}, path), "holds more than tensors"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds more than tensors"),
        (lambda path: torch.save({"epochs": 3}, path), "holds no state_dict"),
        (lambda path: torch.save({}, path), "holds no state_dict"),
    ],
)
def test_other_files_are_refused(write_file, said, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    write_file(path)
    with pytest.raises(InputError, match=said):
        model_of(f"model.weights={path}")
    assert "run" not in capsys.readouterr().out


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="no safetensors file"):
        model_of(f"model.weights={path}")


def test_a_checkpoint_of_a_run_is_a_start_for_another_and_evaluation_needs_no_file(tmp_path):
    first = train(tmp_path / "first", "epochs=1")
    checkpoint = sorted((first / "checkpoints").glob("*.pt"))[-1]
    weights = torch.load(checkpoint, weights_only=True)["model"]
    found = model_of(f"model.weights={checkpoint}").state_dict()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    moved = checkpoint.rename(tmp_path / "start.pt")
    second = train(tmp_path / "second", "epochs=1", f"model.weights={moved}")
    moved.unlink()
    assert "test/accuracy" in evaluate_folder(second, "last")


def test_a_damaged_checkpoint_is_no_start(tmp_path):
    folder = train(tmp_path / "run", "epochs=1")
    checkpoint = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        model_of(f"model.weights={checkpoint}")


@pytest.mark.parametrize(
    "make", [SmallCNN, lambda classes, channels: nn.Sequential(nn.Conv2d(channels, 5, 3), nn.Conv2d(5, classes, 1))]
)
def test_the_head_is_the_last_layer_with_an_output_for_each_class(make):
    model = make(7, 3)
    assert isinstance(model.get_submodule(head_of(model, 7)), nn.Linear | nn.Conv2d)
    with pytest.raises(InputError, match="no layer with 11 outputs"):
        head_of(model, 11)


def test_heads_of_torchvision():
    from sam_runner.models.published import torchvision_model

    with torch.device("meta"):
        heads = {
            name: head_of(torchvision_model(9, name=name), 9)
            for name in ("resnet18", "efficientnet_b0", "vit_b_32", "squeezenet1_1", "densenet121")
        }
    assert heads == {
        "resnet18": "fc",
        "efficientnet_b0": "classifier.1",
        "vit_b_32": "heads.head",
        "squeezenet1_1": "classifier.1",
        "densenet121": "classifier",
    }


IMAGES = ("data=synthetic", "data.num_train=8", "data.num_test=8", "data.image_size=32", "batch_size=8", "device=cpu")
TINIEST = ("model=torchvision", "model.name=shufflenet_v2_x0_5")


def published_in(folder, monkeypatch, model, name):
    """torch's cache with the file that torchvision would download."""
    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), folder / "hub" / "checkpoints" / name)


def test_weights_of_torchvision_come_from_its_cache(tmp_path, monkeypatch):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights, shufflenet_v2_x0_5

    model = shufflenet_v2_x0_5()
    published_in(tmp_path, monkeypatch, model, ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2])
    for source in ("torchvision", "torchvision:IMAGENET1K_V1"):
        found = build_run(settings_of(*IMAGES, *TINIEST, f"model.weights='{source}'")).model
        assert torch.equal(found.conv1[0].weight, model.conv1[0].weight)
        assert found.fc.weight.shape == (10, 1024)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [*TINIEST, "model.weights=torchvision"],
            "cannot be had: .*no way.*\n  put the file at .*shufflenet.*, or give",
        ),
        ([*TINIEST, "model.weights='torchvision:IMAGENET1K_V9'"], "does not exist\n  accepted: IMAGENET1K_V1"),
        ([*TINIEST, "model.weights=timm"], "for networks of timm"),
        (["model=small_cnn", "model.weights=torchvision"], "for networks of torchvision"),
        (["model=timm", "model.name=test_resnet", "model.weights=timm"], "timm has no weights for test_resnet here"),
    ],
)
def test_weights_that_cannot_be_had_are_told(overrides, said, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise urllib.error.URLError("no way")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=said):
        build_run(settings_of(*IMAGES, *overrides))


def test_weights_of_timm_are_those_of_its_pretrained_network(monkeypatch):
    made, create = [], timm.create_model

    def pretrained(name, *, pretrained, **options):
        model = create(name, **options)
        made.append((pretrained, options["num_classes"], model))
        return model

    monkeypatch.setattr(timm, "create_model", pretrained)
    found = build_run(settings_of(*IMAGES, "model=timm", "model.name=test_resnet", "model.weights=timm")).model
    assert [part[:2] for part in made] == [(False, 10), (True, None)]
    assert found is made[0][2]
    assert found.get_classifier().out_features == 10
    assert torch.equal(found.conv1[0].weight, made[1][2].conv1[0].weight)


def test_the_head_has_a_rate_of_its_own():
    run = build_run(settings_of(*TINY, "lr=0.1", "head_lr=0.7"))
    body, head = run.step.optimizer.param_groups
    assert (body["initial_lr"], head["initial_lr"]) == (0.1, 0.7)
    assert [id(param) for param in head["params"]] == [id(param) for param in run.model.head.parameters()]
    everything = {id(param) for param in run.model.parameters()}
    assert {id(param) for group in (body, head) for param in group["params"]} == everything
    assert len(body["params"]) + len(head["params"]) == len(everything)


def test_a_step_of_the_head_is_as_much_longer_as_its_rate():
    """SGD without momentum: the weights move by the rate times the gradient, which is the same for both."""
    moves = []
    for head_lr in ("0.1", "0.7"):
        run = build_run(
            settings_of(
                *TINY, "lr=0.1", f"head_lr={head_lr}", "optimizer.base.momentum=0", "optimizer.base.nesterov=false"
            )
        )
        before = copy.deepcopy(run.model.state_dict())
        examples = next(iter(run.train.epoch(0)))
        run.step(Batch(examples.images, examples.labels), 0.0)
        after = run.model.state_dict()
        moves.append([after[key] - before[key] for key in ("features.0.weight", "head.0.weight")])
    assert torch.equal(moves[0][0], moves[1][0])
    torch.testing.assert_close(moves[1][1], 7 * moves[0][1], rtol=1e-4, atol=1e-6)


def test_a_run_with_a_rate_for_the_head_continues_to_the_same_bytes(tmp_path):
    options = ("head_lr=0.2", "optimizer=sam", "freeze_batchnorm_stats=true", "schedule=constant")
    whole = train(tmp_path / "whole", *options)
    part = train(tmp_path / "part", *options, "max_steps=6")
    train(part, *options)
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_frozen_statistics_stay_and_normalise(tmp_path):
    path = write(tmp_path, "torch", small().state_dict())
    before = small()
    run = build_run(
        settings_of(*TINY, f"model.weights={path}", "freeze_batchnorm_stats=true", "optimizer=sam", "optimizer.m=4")
    )
    run.model.train()
    examples = next(iter(run.train.epoch(0)))
    expected = before.eval()(examples.images)
    stats = run.step(Batch(examples.images, examples.labels), 0.05)
    torch.testing.assert_close(stats.logits, expected, rtol=0, atol=1e-5)
    assert all(torch.equal(old, new) for old, new in zip(before.buffers(), run.model.buffers(), strict=True))
    assert not torch.equal(before.features[1].weight, run.model.features[1].weight)


def test_a_copy_of_a_frozen_network_is_frozen_itself():
    model = small()
    assert freeze(model) == 4
    copied = copy.deepcopy(model)
    copied.train()
    layer = copied.features[1]
    assert not layer.training
    assert layer.train() is layer
    assert copied.features[0].training


def test_freezing_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="freeze_batchnorm_stats has no effect"):
        model_of("freeze_batchnorm_stats=true", "model.batch_norm=false")
