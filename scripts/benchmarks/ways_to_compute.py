"""Compare ways to compute a SAM step and an evaluation on a CPU: precision, layout, torch.compile, folded batch norm.

    python scripts/benchmarks/ways_to_compute.py [--quick] [--threads 1] [--only ResNet-20 ...]

All ways of a network take turns in one process. With one thread the time is that of the processor (process_time), so
other work on the machine disturbs it little. EfficientNet-Lite0 needs timm. "auto" is what sam-train chooses: bf16,
channels_last, depthwise convolutions in float32.
"""

import contextlib
import copy
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from sam_runner.models.layers.float32_depthwise import compute_depthwise_in_float32
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.measuring import Report, make_parser, median, ratio, spread, take_turns
from scripts.benchmarks.step import MODELS, RHO, SGD, Case

BF16 = torch.bfloat16
CASES = {
    "ResNet-20": (128, 32),
    "WRN-16-4": (32, 32),
    "small CNN": (128, 28),
    "EfficientNet-Lite0": (64, 64),
    "MobileNetV2": (64, 64),
    "EfficientNet-B0": (64, 64),
}
LAYERS = ((32, 32), (96, 32), (144, 16), (672, 8), (1152, 4))  # channels and pixels, as in EfficientNets
KERNELS = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1))  # size and stride
BATCH_SIZES = (16, 32, 64, 128, 256, 512)


def efficientnet_lite0() -> nn.Module:
    """Return timm's EfficientNet-Lite0."""
    import timm

    return timm.create_model("tf_efficientnet_lite0", num_classes=10)


MODELS |= {
    "EfficientNet-Lite0": efficientnet_lite0,
    "MobileNetV2": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "EfficientNet-B0": lambda: torchvision.models.efficientnet_b0(num_classes=10),
}


def compiled_step(case: Case) -> tuple[Callable[[], object], float]:
    """Return a step of the compiled network in bf16 and channels_last, and the seconds until the first one is done."""
    model, batch = case._laid_out(True)
    torch._dynamo.reset()
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)
    objective = Objective(model, F.cross_entropy, forward=torch.compile(model), autocast_dtype=BF16)
    step = SamStep(objective, optimizer)
    started = time.perf_counter()
    step(batch, RHO)
    return lambda: step(batch, RHO), time.perf_counter() - started


def measure_steps(report: Report, name: str, rounds: int, clock: Callable[[], float]) -> None:
    """Compare the ways to compute a SAM step of a network."""
    batch_size, side = CASES[name]
    case = Case(name, batch_size, torch.device("cpu"), side=side)
    plain = copy.deepcopy(case.model)
    num_depthwise = compute_depthwise_in_float32(case.model)
    steps = {"auto": case.ours(BF16, channels_last=True)}
    compiled, seconds_to_compile = compiled_step(case)
    steps |= {
        "bf16, NCHW": case.ours(BF16),
        "fp32, channels_last": case.ours(channels_last=True),
        "fp32, NCHW": case.ours(),
        f"auto, torch.compile (ready after {seconds_to_compile:.0f} s)": compiled,
    }
    if num_depthwise:
        case.model = plain
        steps["bf16, channels_last, depthwise in bf16"] = case.ours(BF16, channels_last=True)
    seconds = take_turns(steps, rounds, case.device, clock)
    rows = [
        [way, median(seconds, way) * 1e3, batch_size / median(seconds, way), ratio(seconds, way, "auto"),
         spread(seconds, way, "auto")] for way in steps
    ]  # fmt: skip
    columns = ["way", "ms", "images/s", "time / auto", "+-"]
    report.table(f"SAM step: {name}, batch {batch_size}, {side} x {side} pixels", columns, rows, f"n = {rounds}")
    if num_depthwise:
        report.check(f"time of {name} with depthwise in bf16 / auto", rows[-1][3], 1.5, at_most=False)
    else:
        report.check(f"time of {name} with torch.compile / auto", rows[4][3], 0.95, at_most=False)


def measure_evaluation(report: Report, name: str, rounds: int, clock: Callable[[], float]) -> None:
    """Compare the ways to compute the logits of a batch in evaluation mode."""
    batch_size, side = CASES[name]
    case = Case(name, batch_size, torch.device("cpu"), side=side)
    model, batch = case._laid_out(True)
    model.eval()
    frozen = copy.deepcopy(model)

    def logits_of(forward: Callable) -> Callable[[], object]:
        def compute() -> None:
            with torch.no_grad(), torch.autocast("cpu", dtype=BF16):
                forward(batch.inputs)

        return compute

    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    ways = {"auto": logits_of(model), "torch.compile with freezing": logits_of(torch.compile(frozen))}
    with torch.no_grad(), contextlib.suppress(TraceError):  # timm's EfficientNet cannot be traced
        folded = fuse(copy.deepcopy(model)).to(memory_format=torch.channels_last)
        ways["batch norm folded into convolutions"] = logits_of(folded)
    seconds = take_turns(ways, rounds, case.device, clock)
    torch._inductor.config.freezing = False
    rows = [[way, batch_size / median(seconds, way), ratio(seconds, way, "auto")] for way in ways]
    report.table(f"Evaluation: {name}, batch {batch_size}", ["way", "images/s", "time / auto"], rows, f"n = {rounds}")


def measure_batch_sizes(report: Report, rounds: int, clock: Callable[[], float]) -> None:
    """Measure the images per second of SAM for several batch sizes."""
    steps = {}
    for size in BATCH_SIZES:
        steps[size] = Case("ResNet-20", size, torch.device("cpu")).ours(BF16, channels_last=True)
    seconds = take_turns({str(size): step for size, step in steps.items()}, rounds, torch.device("cpu"), clock)
    row = ["SAM, images/s", *(size / median(seconds, str(size)) for size in BATCH_SIZES)]
    report.table("Batch sizes: ResNet-20", ["batch", *map(str, BATCH_SIZES)], [row], f"n = {rounds}")


def measure_onednn(report: Report, rounds: int, clock: Callable[[], float]) -> None:
    """Compare the steps of ResNet-20 with torch's own convolutions and with oneDNN's."""
    case = Case("ResNet-20", 32, torch.device("cpu"))
    step = case.ours(channels_last=True)

    def without() -> None:
        with torch.backends.mkldnn.flags(enabled=False):
            step()

    seconds = take_turns({"oneDNN": step, "torch": without}, rounds, case.device, clock)
    rows = [[way, 32 / median(seconds, way)] for way in seconds]
    report.table("Convolutions: ResNet-20, batch 32, fp32", ["library", "SAM, images/s"], rows, f"n = {rounds}")


class _Blocked(nn.Module):
    """torchvision's ResNet whose images and activations have oneDNN's blocked layout until the average pooling."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.resnet = resnet
        resnet.avgpool = nn.Sequential(resnet.avgpool, _ToStrided())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.resnet(images.to_mkldnn())


class _ToStrided(nn.Module):
    """The way from oneDNN's blocked layout back to torch's."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.to_dense()


def measure_blocked_layout(report: Report, rounds: int, clock: Callable[[], float]) -> None:
    """Compare the SAM steps of ResNet-18 in fp32 with channels_last and with oneDNN's blocked layout.

    Under autocast to bf16 torch 2.14.1 has no blocked layout: `aten::empty_strided` raises NotImplementedError.
    """
    case = Case("ResNet-18", 32, torch.device("cpu"))
    steps = {"channels_last": case.ours(channels_last=True), "NCHW": case.ours()}
    plain, case.model = copy.deepcopy(case.model), _Blocked(case.model)
    images = case.batch.inputs
    torch.testing.assert_close(case.model(images), plain(images), rtol=1e-3, atol=1e-4)  # the same network
    steps["oneDNN's blocked layout"] = case.ours()
    seconds = take_turns(steps, rounds, case.device, clock)
    rows = [
        [way, 32 / median(seconds, way), ratio(seconds, way, "channels_last"), spread(seconds, way, "channels_last")]
        for way in seconds
    ]
    columns = ["layout", "SAM, images/s", "time / channels_last", "+-"]
    report.table("Layouts: ResNet-18, batch 32, 32 x 32 pixels, fp32", columns, rows, f"n = {rounds}")


def measure_depthwise_layers(report: Report, rounds: int, clock: Callable[[], float]) -> None:
    """Compare single depthwise convolutions in bfloat16 and float32, forward and backward pass."""
    rows = []
    for channels, side in LAYERS:
        row: list[object] = [f"{channels} channels, {side} x {side}"]
        for kernel, stride in KERNELS:
            layer = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
            passes = {}
            for name, dtype in (("fp32", torch.float32), ("bf16", BF16)):
                copied = copy.deepcopy(layer).to(dtype, memory_format=torch.channels_last)
                images = torch.randn(32, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
                passes[name] = forward_and_backward(copied, images.requires_grad_())
            seconds = take_turns(passes, rounds, torch.device("cpu"), clock)
            row.append(ratio(seconds, "bf16", "fp32"))
        rows.append(row)
    columns = ["layer", *(f"{kernel} x {kernel}, stride {stride}" for kernel, stride in KERNELS)]
    report.table("Depthwise convolutions, batch 32: time in bf16 / fp32", columns, rows, f"n = {rounds}")


def forward_and_backward(layer: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Return a function that computes a layer's output and the gradients of its inputs and weights."""
    gradient = torch.ones_like(layer(images))

    def compute() -> None:
        torch.autograd.grad(layer(images), [images, *layer.parameters()], gradient)

    return compute


OTHERS = {
    "batch-sizes": measure_batch_sizes, "onednn": measure_onednn, "blocked-layout": measure_blocked_layout,
    "depthwise": measure_depthwise_layers,
}  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[*CASES, *OTHERS], default=[*CASES, *OTHERS], help="default: all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    configure_torch(torch.device("cpu"))
    rounds = 5 if options.quick else 11
    clock = time.process_time if options.threads == 1 else time.perf_counter
    report = Report("Ways to compute on a CPU", torch.device("cpu"))
    for name in options.only:
        if name in OTHERS:
            OTHERS[name](report, rounds, clock)
        else:
            measure_steps(report, name, rounds, clock)
            measure_evaluation(report, name, rounds, clock)
    report.write(options.out, "compute")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
