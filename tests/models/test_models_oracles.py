"""Networks compared with pytorchcv's: the same numbers of weights, and the same logits with the same weights.

Where the two differ on purpose, the test changes pytorchcv's network and its docstring names the difference.
"""

import numpy as np
import pytest
import torch
from pytorchcv.models.pyramidnet_cifar import get_pyramidnet_cifar
from pytorchcv.models.resnet_cifar import get_resnet_cifar
from pytorchcv.models.shakeshakeresnet_cifar import get_shakeshakeresnet_cifar
from pytorchcv.models.wrn_cifar import get_wrn_cifar
from torch import nn
from torch.nn import functional as F

from sam_runner.models.layers.initialisation import initialise
from sam_runner.models.pyramidnet import PyramidNet
from sam_runner.models.resnet_cifar import ResNetCifar
from sam_runner.models.resnet_mentormix import ResNetMentorMix
from sam_runner.models.shake_shake import ShakeShakeNet
from sam_runner.models.wide_resnet import WideResNet
from tests.models.test_models import num_parameters, numpy_convolution, require_gradients_everywhere


def randomise_batch_norm(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.3)


def require_equal_logits(ours, theirs):
    """Copy the weights of one network to the other in their order, then compare the logits."""
    torch.manual_seed(0)
    ours, theirs = ours.double(), theirs.double()
    randomise_batch_norm(ours)
    state = theirs.state_dict()
    assert [value.shape for value in state.values()] == [value.shape for value in ours.state_dict().values()]
    theirs.load_state_dict(dict(zip(state, ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class PaddingShortcut(nn.Module):
    """The weightless shortcut of He et al. (option A), in place of pytorchcv's 1x1 convolution (option B)."""

    def __init__(self, new_channels):
        super().__init__()
        self.half = new_channels // 2

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.half, self.half))


def test_resnet():
    theirs = get_resnet_cifar(num_classes=10, blocks=20, bottleneck=False)
    for stage in (theirs.features.stage2, theirs.features.stage3):
        stage.unit1.identity_conv = PaddingShortcut(stage.unit1.body.conv1.conv.in_channels)
    require_equal_logits(ResNetCifar(10, 3, depth=20), theirs)


def test_wide_resnet():
    require_equal_logits(WideResNet(10, 3, depth=16, widen_factor=2), get_wrn_cifar(10, blocks=16, width_factor=2))


@pytest.mark.parametrize(("depth", "alpha", "bottleneck"), [(20, 13, False), (29, 20, True)])
def test_pyramidnet(depth, alpha, bottleneck):
    ours = PyramidNet(10, 3, depth=depth, alpha=alpha, bottleneck=bottleneck, shakedrop=0.0)
    require_equal_logits(ours, get_pyramidnet_cifar(10, blocks=depth, alpha=alpha, bottleneck=bottleneck))


class ShiftedShortcut(nn.Module):
    """Shift to the pixel below and to the right, as in the SAM paper's code; pytorchcv shifts up and to the left."""

    def __init__(self, theirs):
        super().__init__()
        self.conv1, self.conv2, self.bn, self.stride = theirs.conv1, theirs.conv2, theirs.bn, theirs.pool.stride

    def forward(self, x):
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        step = slice(None, None, self.stride)
        return self.bn(torch.cat([self.conv1(x[:, :, step, step]), self.conv2(shifted[:, :, step, step])], 1))


def test_shake_shake():
    """pytorchcv applies ReLUs after stem and blocks, also to the shortcut path; ours begin each branch with one."""
    theirs = get_shakeshakeresnet_cifar(10, blocks=14, bottleneck=False, first_stage_channels=8)
    theirs.features.init_block.activ = nn.Identity()
    for unit in [module for module in theirs.modules() if type(module).__name__ == "ShakeShakeResUnit"]:
        unit.activ = nn.Identity()
        unit.branch1, unit.branch2 = (nn.Sequential(nn.ReLU(), branch) for branch in (unit.branch1, unit.branch2))
        if unit.resize_identity:
            unit.identity_branch = ShiftedShortcut(unit.identity_branch)
    theirs.features.final_pool = nn.Sequential(nn.ReLU(), nn.AvgPool2d(8))
    require_equal_logits(ShakeShakeNet(10, 3, depth=14, width=8), theirs)


PUBLISHED = [  # our network, pytorchcv's, published millions of weights
    (
        lambda: ShakeShakeNet(10, 3, width=32),
        lambda: get_shakeshakeresnet_cifar(10, 26, bottleneck=False, first_stage_channels=32),
        2.9,
    ),
    (
        lambda: ShakeShakeNet(10, 3, width=64),
        lambda: get_shakeshakeresnet_cifar(10, 26, bottleneck=False, first_stage_channels=64),
        11.7,
    ),
    (
        lambda: ShakeShakeNet(10, 3),
        lambda: get_shakeshakeresnet_cifar(10, 26, bottleneck=False, first_stage_channels=96),
        26.2,
    ),
    (lambda: PyramidNet(100, 3), lambda: get_pyramidnet_cifar(100, 272, 200, bottleneck=True), 26.3),
    (
        lambda: PyramidNet(10, 3, depth=110, alpha=270, bottleneck=False),
        lambda: get_pyramidnet_cifar(10, 110, 270, bottleneck=False),
        28.5,
    ),
    (
        lambda: PyramidNet(10, 3, depth=110, alpha=84, bottleneck=False),
        lambda: get_pyramidnet_cifar(10, 110, 84, bottleneck=False),
        3.9,
    ),
    (lambda: WideResNet(10, 3), lambda: get_wrn_cifar(10, 28, 10), 36.5),
    (lambda: WideResNet(10, 3, depth=40, widen_factor=8), lambda: get_wrn_cifar(10, 40, 8), 35.7),
]


@pytest.mark.parametrize(("ours", "theirs", "millions"), PUBLISHED)
def test_numbers_of_weights(ours, theirs, millions):
    with torch.device("meta"):
        count = num_parameters(ours())
        assert count == num_parameters(theirs())
    assert count == pytest.approx(millions * 1e6, abs=0.06e6)


def test_pyramidnet_has_as_many_layers_as_its_depth_says():
    with torch.device("meta"):
        for depth, bottleneck in ((272, True), (110, False)):
            layers = [
                module
                for module in PyramidNet(10, 3, depth=depth, bottleneck=bottleneck).modules()
                if isinstance(module, nn.Conv2d | nn.Linear)
            ]
            assert len(layers) == depth


def mentormix_parameters(num_classes):
    total, inputs = 9 * 3 * 64, 64
    for width in (128, 256, 512):
        for _ in range(5):
            total += 9 * inputs * width + 9 * width**2 + 2 * inputs + 2 * width
            inputs = width
    return total + 2 * inputs + inputs * num_classes + num_classes


def test_the_resnet32_of_mentormix_has_29_million_weights_in_32_layers():
    with torch.device("meta"):
        model = ResNetMentorMix(10, 3)
    assert num_parameters(model) == mentormix_parameters(10) == 29_442_378
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 32


def numpy_batch_norm(x, layer):
    weight, bias, mean, var = (
        values.detach().numpy()[:, None, None]
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    )
    return (x - mean) / np.sqrt(var + 0.001) * weight + bias


def numpy_leaky_relu(x):
    return np.where(x < 0, 0.1 * x, x)


def test_the_resnet32_of_mentormix_equals_numpy():
    torch.manual_seed(0)
    model = ResNetMentorMix(10, 3, depth=14, width=4).double()
    randomise_batch_norm(model)
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    x = numpy_convolution(images.numpy(), model.stem)
    for index, block in enumerate(model.blocks):
        if index == 0:
            x = active = numpy_batch_norm(numpy_leaky_relu(x), block.bn1)
        else:
            active = numpy_leaky_relu(numpy_batch_norm(x, block.bn1))
        stride = 2 if index in (2, 4) else 1
        branch = numpy_leaky_relu(numpy_batch_norm(numpy_convolution(active, block.conv1, stride), block.bn2))
        branch = numpy_convolution(branch, block.conv2)
        half = (branch.shape[1] - x.shape[1]) // 2
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // stride, stride, w // stride, stride).mean((3, 5))
        x = branch + np.pad(x, ((0, 0), (half, half), (0, 0), (0, 0)))
    features = numpy_leaky_relu(numpy_batch_norm(x, model.bn)).mean((2, 3))
    expected = features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    np.testing.assert_allclose(model.eval()(images).detach().numpy(), expected, rtol=0, atol=1e-10)


SMALL = {
    "shake_shake": lambda channels: ShakeShakeNet(10, channels, depth=8, width=4),
    "pyramidnet": lambda channels: PyramidNet(10, channels, depth=11, alpha=9, shakedrop=0.5),
    "mentormix": lambda channels: ResNetMentorMix(10, channels, depth=8, width=4),
    "wide_resnet_without_batch_norm": lambda channels: WideResNet(
        10, channels, depth=10, widen_factor=1, batch_norm=False
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_any_side_and_channels_and_every_weight_has_a_gradient(name):
    for channels, height, width in ((1, 8, 8), (3, 9, 7), (3, 28, 28)):
        assert SMALL[name](channels)(torch.rand(2, channels, height, width)).shape == (2, 10)
    torch.manual_seed(0)
    require_gradients_everywhere(SMALL[name](3), torch.randn(20, 3, 16, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShakeShakeNet(10, 3, depth=27), "6n \\+ 2"),
        (lambda: ResNetMentorMix(10, 3, depth=31), "6n \\+ 2"),
        (lambda: PyramidNet(10, 3, depth=112), "9n \\+ 2 with bottleneck=true"),
        (lambda: PyramidNet(10, 3, depth=28, bottleneck=False), "6n \\+ 2 with bottleneck=false"),
        (lambda: WideResNet(10, 3, depth=10, init="he"), "fan_in, fan_out, sam, torch"),
    ],
)
def test_other_depths_and_initialisations_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_wide_resnet_without_batch_norm_has_biases_instead():
    model = WideResNet(10, 3, depth=10, widen_factor=1, batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(
        (module.bias is None) == (module.kernel_size == (1, 1))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    )


@pytest.mark.parametrize("init", ["fan_in", "fan_out", "sam", "torch"])
def test_initial_weights_have_the_documented_variance(init):
    torch.manual_seed(0)
    convolution, head = nn.Conv2d(20, 40, 3), nn.Linear(200, 50)
    before = convolution.weight.detach().clone()
    initialise(nn.Sequential(convolution, head), head, init)
    variances = {  # of convolution and head
        "fan_in": (2 / (9 * 20), 2 / 200),
        "fan_out": (2 / (9 * 40), 1 / 3 / 200),
        "sam": (2 / (9 * 40), 1 / 3 / 50),
        "torch": (1 / 3 / (9 * 20), 1 / 3 / 200),
    }[init]
    for layer, variance in zip((convolution, head), variances, strict=True):
        error = (2 / layer.weight.numel()) ** 0.5 * variance
        assert abs(float(layer.weight.detach().square().mean()) - variance) < 4 * error
    assert torch.equal(before, convolution.weight) == (init == "torch")
    assert bool((head.bias == 0).all()) == (init == "sam")
