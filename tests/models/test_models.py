"""Networks for small images: parameter counts, shapes, gradients, and forward passes written in NumPy."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from sam_runner.models.resnet_cifar import ResNetCifar
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.models.wide_resnet import WideResNet

PUBLISHED_MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}  # He et al. (2016), table 6


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def resnet_parameters(depth, num_classes, in_channels):
    """Count a stem, 2n convolutions a stage (the first of stages 2 and 3 with half the input channels) and a head."""
    pairs = 2 * (depth - 2) // 6
    convolutions = 9 * (
        16 * in_channels + pairs * 16**2 + 16 * 32 + (pairs - 1) * 32**2 + 32 * 64 + (pairs - 1) * 64**2
    )
    batch_norms = 2 * (16 + pairs * (16 + 32 + 64))
    return convolutions + batch_norms + 64 * num_classes + num_classes


def small_cnn_parameters(width, num_classes, in_channels, batch_norm):
    convolutions = 9 * width * (in_channels + width + 2 * width + 4 * width)
    per_feature = (2 if batch_norm else 1) * 6 * width
    return convolutions + per_feature + 2 * width * num_classes + num_classes


def numpy_convolution(images_NCHW, layer, stride=1):
    """Convolve with a 3x3 kernel and padding 1."""
    padded = np.pad(images_NCHW, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    result = np.einsum("nchwij,ocij->nohw", patches, layer.weight.detach().numpy())
    return result if layer.bias is None else result + layer.bias.detach().numpy()[:, None, None]


def require_gradients_everywhere(model, images):
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 10).backward()
    missing = [name for name, parameter in model.named_parameters() if not bool(parameter.grad.abs().sum() > 0)]
    assert missing == []


@pytest.mark.parametrize("depth", PUBLISHED_MILLIONS)
def test_resnet_parameters_equal_the_formula_and_the_published_count(depth):
    count = num_parameters(ResNetCifar(10, 3, depth=depth))
    assert count == resnet_parameters(depth, 10, 3)
    assert count == pytest.approx(PUBLISHED_MILLIONS[depth] * 1e6, rel=0.02)


@pytest.mark.parametrize(("depth", "num_classes", "in_channels"), [(8, 2, 1), (14, 100, 3), (26, 7, 4)])
def test_resnet_parameters_for_other_classes_and_channels(depth, num_classes, in_channels):
    model = ResNetCifar(num_classes, in_channels, depth=depth)
    assert num_parameters(model) == resnet_parameters(depth, num_classes, in_channels)


@pytest.mark.parametrize("depth", PUBLISHED_MILLIONS)
def test_resnet_depth_counts_layers_with_weights(depth):
    modules = ResNetCifar(10, 3, depth=depth).modules()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == depth


@pytest.mark.parametrize("depth", [-4, 2, 7, 19, 21, 51, 112])
def test_resnet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 2.*not {depth}"):
        ResNetCifar(10, 3, depth=depth)


def wide_parameters(depth, k, num_classes):
    """Count as in Zagoruyko and Komodakis (2016), table 1; the first shortcut of each stage is a 1x1 convolution."""
    total, inputs = 9 * 3 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        for index in range((depth - 4) // 6):
            total += 9 * inputs * width + 9 * width**2 + 2 * inputs + 2 * width
            total += inputs * width if index == 0 and inputs != width else 0
            inputs = width
    return total + 2 * inputs + inputs * num_classes + num_classes


@pytest.mark.parametrize(
    ("depth", "k", "millions"), [(28, 10, 36.5), (16, 8, 11.0), (40, 2, 2.2), (40, 4, 8.9), (22, 8, 17.2)]
)  # their table 4
def test_wide_resnet_parameters_equal_the_formula_and_the_published_count(depth, k, millions):
    with torch.device("meta"):
        count = num_parameters(WideResNet(10, 3, depth=depth, widen_factor=k))
    assert count == wide_parameters(depth, k, 10)
    assert count == pytest.approx(millions * 1e6, abs=0.06e6)


@pytest.mark.parametrize("depth", [4, 9, 20, 29])
def test_wide_resnet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 4.*not {depth}"):
        WideResNet(10, 3, depth=depth)


def test_every_weight_of_a_wide_resnet_gets_a_gradient():
    require_gradients_everywhere(WideResNet(10, 3, depth=10, widen_factor=2), torch.rand(20, 3, 16, 16))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("model", [ResNetCifar, SmallCNN, WideResNet])
def test_shapes(model, side, channels):
    logits = model(10, channels)(torch.rand(2, channels, side, side))
    assert logits.shape == (2, 10)
    assert bool(logits.isfinite().all())


def test_resnet_halves_the_resolution_twice():
    model = ResNetCifar(10, 3, depth=8).eval()
    assert model.blocks(model.stem(torch.rand(1, 3, 32, 32))).shape == (1, 64, 8, 8)
    assert model.blocks(model.stem(torch.rand(1, 3, 28, 28))).shape == (1, 64, 7, 7)


def numpy_batch_norm(x, layer):
    weight, bias, mean, var = (
        values.detach().numpy()[:, None, None]
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def numpy_block(x, block, stride, new_channels):
    branch = np.maximum(numpy_batch_norm(numpy_convolution(x, block.conv1, stride), block.bn1), 0)
    branch = numpy_batch_norm(numpy_convolution(branch, block.conv2), block.bn2)
    half = new_channels // 2
    shortcut = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (half, half), (0, 0), (0, 0)))
    return np.maximum(branch + shortcut, 0)


def test_resnet_equals_numpy():
    torch.manual_seed(0)
    model = ResNetCifar(10, 3, depth=8).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2)
            for values in (module.bias.data, module.running_mean):
                values.normal_()
    images = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    x = np.maximum(numpy_batch_norm(numpy_convolution(images.numpy(), model.stem[0]), model.stem[1]), 0)
    for block, stride, new_channels in zip(model.blocks, (1, 2, 2), (0, 16, 32), strict=True):
        x = numpy_block(x, block, stride, new_channels)
    expected = x.mean((2, 3)) @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    np.testing.assert_allclose(model(images).detach().numpy(), expected, rtol=0, atol=1e-10)


def test_resnet_initial_weights_have_the_variance_of_he():
    torch.manual_seed(0)
    for module in ResNetCifar(10, 3, depth=20).modules():
        if isinstance(module, nn.Conv2d):
            count, variance = module.weight.numel(), 2 / (9 * module.in_channels)
            error = (2 / count) ** 0.5 * variance
            assert abs(float(module.weight.detach().square().mean()) - variance) < 4 * error


@pytest.mark.parametrize("depth", [8, 20])
def test_resnet_gradients_reach_every_parameter(depth):
    torch.manual_seed(0)
    require_gradients_everywhere(ResNetCifar(10, 3, depth=depth), torch.randn(16, 3, 16, 16))


def test_small_cnn_has_its_documented_number_of_parameters():
    count = num_parameters(SmallCNN(10, 1))
    assert count == small_cnn_parameters(32, 10, 1, batch_norm=True) == 65_834
    assert f"{count:,} parameters" in inspect.getdoc(SmallCNN)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("width", "num_classes", "in_channels"), [(1, 2, 1), (8, 10, 3), (33, 100, 3)])
def test_small_cnn_parameters_equal_the_formula(width, num_classes, in_channels, batch_norm):
    model = SmallCNN(num_classes, in_channels, width=width, batch_norm=batch_norm)
    assert num_parameters(model) == small_cnn_parameters(width, num_classes, in_channels, batch_norm)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == batch_norm


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_small_cnn_gradients_reach_every_parameter(batch_norm, dropout):
    torch.manual_seed(0)
    require_gradients_everywhere(SmallCNN(10, 3, batch_norm=batch_norm, dropout=dropout), torch.randn(32, 3, 8, 8))


def test_small_cnn_takes_images_of_two_by_two_pixels():
    assert SmallCNN(3, 1)(torch.rand(4, 1, 2, 2)).shape == (4, 3)


def test_small_cnn_dropout_acts_in_training_only():
    images = torch.rand(4, 1, 8, 8)
    model = SmallCNN(10, 1, batch_norm=False, dropout=0.5)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_small_cnn_drops_features_with_the_given_probability():
    torch.manual_seed(0)
    model = SmallCNN(10, 1, dropout=0.25)
    dropped = (model.head[0](torch.ones(100, 400)) == 0).double().mean()
    assert abs(float(dropped) - 0.25) < 4 * (0.25 * 0.75 / 40_000) ** 0.5


def test_small_cnn_without_dropout_is_deterministic_in_training():
    images = torch.rand(4, 1, 8, 8)
    model = SmallCNN(10, 1)
    assert torch.equal(model(images), model(images))


def test_small_cnn_equals_numpy():
    torch.manual_seed(0)
    model = SmallCNN(10, 3, width=4, batch_norm=False).double()
    images = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    first, second, third, fourth = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    features = images.numpy()
    for convolution in (first, second):
        features = np.maximum(numpy_convolution(features, convolution), 0)
    features = features.reshape(2, 4, 3, 2, 4, 2).max((3, 5))
    for convolution in (third, fourth):
        features = np.maximum(numpy_convolution(features, convolution), 0)
    linear = model.head[-1]
    expected = features.mean((2, 3)) @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    np.testing.assert_allclose(model(images).detach().numpy(), expected, rtol=0, atol=1e-10)
