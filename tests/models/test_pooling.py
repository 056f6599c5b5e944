"""Pooling: the values of torch's functions to the bit, gradients in the layout of the images."""

import pytest
import torch
import torch.fx
from torch.nn import functional as F

from sam_runner.models.layers.pooling import every_nth_pixel, mean_over_pixels
from sam_runner.models.resnet_cifar import ResNetCifar

FUNCTIONS = {
    "mean": (mean_over_pixels, lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "every second": (lambda x: every_nth_pixel(x, 2), lambda x: x[:, :, ::2, ::2]),
    "every third": (lambda x: every_nth_pixel(x, 3), lambda x: x[:, :, ::3, ::3]),
}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_torch_in_the_layout_of_the_images(name, dtype, layout):
    ours, torchs = FUNCTIONS[name]
    for shape in ((2, 3, 7, 8), (4, 16, 1, 1), (3, 1, 5, 5), (2, 32, 16, 16)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(memory_format=layout)
        pair = [images.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
        found, exact = ours(pair[0]), torchs(pair[1])
        assert torch.equal(found, exact) and found.dtype == dtype
        weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        gradients = [
            torch.autograd.grad(output, leaf, weights)[0] for output, leaf in zip((found, exact), pair, strict=True)
        ]
        assert torch.equal(*gradients)
        assert gradients[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_and_vmap(name):
    ours, _ = FUNCTIONS[name]
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), (images,))
    stacked = torch.stack([images.detach(), 2 * images.detach()])
    torch.testing.assert_close(torch.vmap(ours)(stacked)[1], 2 * ours(images).detach())


def test_networks_with_it_can_be_traced():
    model = ResNetCifar(3, 3, depth=8).eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))
