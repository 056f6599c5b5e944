"""Depthwise convolutions in float32 under autocast: their dtype, values and gradients, and which layers they are."""

import copy
import pickle

import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.layers.float32_depthwise import compute_depthwise_in_float32
from sam_runner.training.builders.run import build_network
from tests.helpers import config_of


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(1, 1, 1, groups=1),
    )  # fmt: skip


def test_only_depthwise_layers_compute_in_float32_under_autocast():
    model = network()
    assert compute_depthwise_in_float32(model) == 1
    images = torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = model[0](images)
        second = model[1](first)
        third = model[2](second)
    assert [first.dtype, second.dtype, third.dtype] == [torch.bfloat16, torch.float32, torch.bfloat16]
    weight = model[1].weight.detach().clone().requires_grad_()
    exact = F.conv2d(first.detach().float(), weight, model[1].bias, stride=2, groups=8)
    assert torch.equal(second, exact)
    (expected,) = torch.autograd.grad(exact.square().sum(), weight)
    (found,) = torch.autograd.grad(second.square().sum(), model[1].weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_without_autocast_and_in_a_copy_nothing_else_changes():
    plain, model = network()[:3], network()[:3]
    compute_depthwise_in_float32(model)
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(model(images), plain(images))
    assert model.double()(images.double()).dtype == torch.float64
    other = copy.deepcopy(model.float())
    with torch.no_grad():
        other[1].weight.zero_()
        other[1].bias.zero_()
    assert not other[1](plain[0](images)).any() and model[1](plain[0](images)).any()
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pickle.loads(pickle.dumps(model))[:2](images).dtype == torch.float32
    own = network()
    own[1].forward = lambda images: images
    assert compute_depthwise_in_float32(own) == 0


def test_the_network_of_a_run_has_such_layers_on_a_cpu():
    config = config_of("model=torchvision", "model.name=mobilenet_v2")
    model, _ = build_network(config, 3, torch.zeros(2, 3, 32, 32), torch.device("cpu"))
    seen = set()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, _, out: seen.add((layer.groups > 1, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(4, 3, 32, 32))
    assert seen == {(True, torch.float32), (False, torch.bfloat16)}
