"""FLOPs of the plan against published figures, which count a multiply-add as one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from sam_runner.runs.dry_run import _describe_run, count_backward_flops, count_forward_flops
from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import KStep, Plain, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.training.builders.run import build_run
from tests.helpers import TINY, config_of

HE = "He et al., CVPR 2016, arXiv 1512.03385: Table 1, and Figure 3 for VGG-19"
XIE = "Xie et al., CVPR 2017, arXiv 1611.05431, Table 1"
SANDLER = "Sandler et al., CVPR 2018, arXiv 1801.04381, Table 4"
TAN = "Tan and Le, ICML 2019, arXiv 1905.11946, Table 2"
SWIN = "Liu et al., ICCV 2021, arXiv 2103.14030, Table 1"
CONVNEXT = "Liu et al., CVPR 2022, arXiv 2201.03545, Table 1"
TORCHVISION = "torchvision's documentation, table of classification weights, column GFLOPS"
PUBLISHED = [
    ("resnet18", 1.8e9, HE), ("resnet34", 3.6e9, HE), ("vgg19", 19.6e9, HE), ("resnext50_32x4d", 4.2e9, XIE),
    ("mobilenet_v2", 300e6, SANDLER), ("efficientnet_b0", 390e6, TAN), ("swin_t", 4.5e9, SWIN),
    ("convnext_tiny", 4.5e9, CONVNEXT), ("vit_b_16", 17.56e9, TORCHVISION), ("densenet121", 2.83e9, TORCHVISION),
]  # fmt: skip
QUICK = ("resnet18", "mobilenet_v2", "vit_b_16")


@pytest.mark.parametrize(
    ("name", "multiply_adds", "source"),
    [pytest.param(*row, marks=() if row[0] in QUICK else pytest.mark.slow) for row in PUBLISHED],
)
def test_flops_of_a_forward_pass_are_the_published_ones(name, multiply_adds, source):
    with torch.device("meta"):
        model = models.get_model(name)
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    assert count_forward_flops(model, (3, 224, 224)) == pytest.approx(2 * multiply_adds, rel=0.015), source
    assert torch.backends.mha.get_fastpath_enabled() is had_fast_path
    assert model.training


@pytest.mark.parametrize("method", [Plain(), Sam(), KStep(2), SecondOrder()])
@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_the_cost_of_a_step_is_the_flops_that_it_makes(method, kind):
    if kind == "attention":
        layers = [torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(4)]
        inputs = torch.randn(2, 8, 32)
    else:
        layers = [part for _ in range(8) for part in (torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Tanh())]
        inputs = torch.randn(2, 8, 8, 8)
    model = torch.nn.Sequential(*layers)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.train()(inputs)
    num_forward, num_backward = method.cost(0)
    objective = Objective(model, lambda outputs, _: outputs.square().mean())
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=1e-6), method)
    with FlopCounterMode(display=False) as whole:
        step(Batch(inputs, None), 0.1)
    expected = (num_forward + 2 * num_backward) * forward.get_total_flops()
    assert whole.get_total_flops() == pytest.approx(expected, rel=0.06)


# Convolutions of 3 x 3 on 8 x 8 pixels, from 1 to 4 and to 2 channels, and a head for 10 classes; a multiply-add is 2.
FIRST, SECOND, HEAD = 2 * 64 * 9 * 1 * 4, 2 * 64 * 9 * 4 * 2, 2 * 2 * 10


@pytest.mark.parametrize(
    ("frozen", "backward"),
    [
        ((), FIRST + 2 * SECOND + 2 * HEAD),  # of all weights and activations; the image needs none
        ((0,), SECOND + 2 * HEAD),
        ((0, 1), HEAD),  # the head alone
        ((1,), FIRST + SECOND + 2 * HEAD),  # the gradient passes through the frozen layer
        ((1, 4), FIRST + SECOND + HEAD),
    ],
)
def test_the_backward_pass_of_frozen_layers_is_counted_by_hand(frozen, backward):
    layers = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1)
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 10))
    for index in frozen:
        model[index].requires_grad_(False)
    assert count_forward_flops(model, (1, 8, 8)) == FIRST + SECOND + HEAD
    assert count_backward_flops(model, (1, 8, 8)) == backward
    assert all(param.grad is None for param in model.parameters())


def test_the_plan_counts_what_is_trained(tmp_path):
    """12 steps of 16 images."""
    run = build_run(config := config_of(*TINY, "optimizer=esam"))
    for param in list(run.model.parameters())[:-2]:
        param.requires_grad_(False)
    forward, head = count_forward_flops(run.model, run.train.shape), list(run.model.modules())[-1]
    expected = (2.5 * forward + 1.5 * 2 * head.in_features * head.out_features) * 12 * 16
    assert f"compute    {expected:.3g} FLOPs" in str(_describe_run(config, run, tmp_path, [], ""))
