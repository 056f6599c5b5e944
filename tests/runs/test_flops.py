"""FLOPs of the plan against published figures, which count a multiply-add as one."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from sam_runner.runs.dry_run import count_forward_flops
from sam_runner.sam.batch import Batch
from sam_runner.sam.methods import KStep, Plain, Sam, SecondOrder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep

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
    objective = Objective(model, lambda outputs, _: outputs.square().mean())
    step = SamStep(objective, torch.optim.SGD(model.parameters(), lr=1e-6), method)
    with FlopCounterMode(display=False) as whole:
        step(Batch(inputs, None), 0.1)
    expected = method.cost(0) * forward.get_total_flops()
    assert whole.get_total_flops() == pytest.approx(expected, rel=0.06)
