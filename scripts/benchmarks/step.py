"""Compare the SAM step with its floor and with other programs: arithmetic, whole steps, memory, groups, a profile.

    python scripts/benchmarks/step.py [--quick] [--groups]

The floor of a SAM step is two forward and backward passes plus one step of the base optimizer. The other programs are
pytorch-optimizer's SAM from PyPI, and the wrapper that most scripts copy (`PlainWrapper`, one tensor at a time).
"""

import copy
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_runner.models.resnet_cifar import ResNetCifar
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.models.wide_resnet import WideResNet
from sam_runner.sam.batch import Batch
from sam_runner.sam.objective import Evaluation, Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.measuring import Report, make_parser, median, ratio, spread, take_turns

SGD = {
    "lr": 1e-6,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}  # a small rate, so that no weight grows during the measurement
RHO = 0.05


def build_mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the stem of the CIFAR variants: 3x3, stride 1, no pooling."""
    from torchvision.models import resnet18 as build

    model = build(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def resnet50() -> nn.Module:
    """Return torchvision's ResNet-50."""
    from torchvision.models import resnet50 as build

    return build(num_classes=1000)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small CNN": lambda: SmallCNN(10, 1),
    "ResNet-20": lambda: ResNetCifar(10, 3),
    "thin ResNet-32": lambda: ResNetCifar(10, 3, depth=32),
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "WRN-28-10": lambda: WideResNet(10, 3),
    "WRN-16-4": lambda: WideResNet(10, 3, depth=16, widen_factor=4),
    "MLP 60x64": lambda: build_mlp(64, *[64] * 61, 10),
    "MLP 1 M": lambda: build_mlp(784, 640, 640, 128, 10),
    "MLP 10 M": lambda: build_mlp(784, 2560, 2560, 560, 10),
    "MLP 49 M": lambda: build_mlp(784, 6144, 6144, 1000, 10),
}


class PlainWrapper:
    """SAM with the operations of the wrapper that most scripts copy, including its product with 1 (for ASAM).

    It treats the parameters one by one and keeps clones of w.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params, self.saved = params, {}
        self.base = torch.optim.SGD(params, foreach=False, **SGD)

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.norm(torch.stack([param.grad.norm(p=2) for param in self.params]), p=2)
        scale = RHO / (norm + 1e-12)
        for param in self.params:
            self.saved[param] = param.data.clone()
            param.add_(1.0 * param.grad * scale)

    @torch.no_grad()
    def second_step(self) -> None:
        for param in self.params:
            param.data = self.saved[param]
        self.base.step()


class _Given(Objective):
    """An objective that returns given gradients without any pass, to measure the rest of `SamStep`.

    The step overwrites the gradient of the first pass with w + eps.
    """

    def __init__(self, model: nn.Module, grads: list[Tensor]) -> None:
        super().__init__(model, F.cross_entropy)
        self.grads, self.first = grads, [grad.clone() for grad in grads]
        self.given = Evaluation(torch.zeros((), device=self.device), torch.zeros(1, 2, device=self.device))

    def gradient(
        self, batch: Batch, *, update_statistics: bool, create_graph: bool, shaken: bool, reduce: bool
    ) -> tuple[Evaluation, list[Tensor], list[bool]]:
        return self.given, list(self.first), [True] * len(self.first)

    def backward(self, batch: Batch, share: float, *, update_statistics: bool, reduce: bool) -> Evaluation:
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        return self.given


def pytorch_optimizer_sam(params: list[nn.Parameter]):
    """Return the SAM optimizer of pytorch-optimizer."""
    from pytorch_optimizer import SAM

    return SAM(params, torch.optim.SGD, rho=RHO, **SGD)


def measure_arithmetic(name: str, rounds: int, device: torch.device) -> tuple[list, dict[str, float]]:
    """Measure a step without forward and backward; return a row of the table, and the times in SGD steps."""
    models = [MODELS[name]().to(device) for _ in range(5)]
    params = [list(model.parameters()) for model in models]
    grads = [torch.randn_like(param) for param in params[0]]
    for same in params:
        for param, grad in zip(same, grads, strict=True):
            param.grad = grad
    sgd = torch.optim.SGD(params[0], foreach=False, **SGD)
    fused = torch.optim.SGD(params[1], fused=True, **SGD)
    wrapper, rival = PlainWrapper(params[2]), pytorch_optimizer_sam(params[3])
    ours = SamStep(_Given(models[4], grads), torch.optim.SGD(params[4], fused=True, **SGD))
    batch = Batch(torch.zeros(1, 1, device=device), torch.zeros(1, dtype=torch.int64, device=device))

    def wrapped() -> None:
        wrapper.first_step()
        wrapper.second_step()

    def rivalled() -> None:
        rival.first_step(zero_grad=False)
        rival.second_step(zero_grad=False)

    contenders = {
        "SGD": sgd.step, "fused SGD": fused.step, "wrapper": wrapped, "pytorch-optimizer": rivalled,
        "ours": lambda: ours(batch, RHO),
    }  # fmt: skip
    seconds = take_turns(contenders, rounds, device)
    ratios = {entry: ratio(seconds, entry, "SGD") for entry in contenders}
    millions = sum(param.numel() for param in params[0]) / 1e6
    return [
        f"{name}, {millions:.1f} M, {len(grads)} tensors", median(seconds, "SGD") * 1e3, ratios["fused SGD"],
        ratios["wrapper"], ratios["pytorch-optimizer"], ratios["ours"], spread(seconds, "ours", "SGD"),
    ], ratios  # fmt: skip


class Case:
    """A model and a batch; the methods return functions that take a step with them."""

    def __init__(self, name: str, batch_size: int, device: torch.device, *, side: int = 32, classes: int = 10) -> None:
        torch.manual_seed(0)
        self.model = MODELS[name]().to(device)
        shape = (
            (784,) if name.startswith("MLP 1") or name == "MLP 49 M" else (1 if name == "small CNN" else 3, side, side)
        )
        images, labels = (
            torch.randn(batch_size, *shape, device=device),
            torch.arange(batch_size, device=device) % classes,
        )
        self.batch, self.device, self.name = Batch(images, labels), device, name

    def ours(self, dtype: torch.dtype | None = None, *, channels_last: bool = False, **options) -> Callable[[], object]:
        """Return a step of `SamStep`, as sam-train builds it."""
        model, batch = self._laid_out(channels_last)
        optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)
        step = SamStep(Objective(model, F.cross_entropy, autocast_dtype=dtype), optimizer, **options)
        return lambda: step(batch, RHO)

    def sgd(
        self, dtype: torch.dtype | None = None, *, fused: bool = False, foreach: bool | None = None
    ) -> Callable[[], object]:
        """Return a plain SGD step."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), fused=fused, foreach=foreach, **SGD)

        def step() -> None:
            optimizer.zero_grad()
            self._backward(model, dtype)
            optimizer.step()

        return step

    def floor(self, dtype: torch.dtype | None = None, *, channels_last: bool = False) -> Callable[[], object]:
        """Return two forward and backward passes and a fused step, the least that a SAM step can cost."""
        model, batch = self._laid_out(channels_last)
        optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)

        def step() -> None:
            for _ in range(2):
                optimizer.zero_grad()
                self._backward(model, dtype, batch)
            optimizer.step()

        return step

    def gradient(self) -> Callable[[], object]:
        """Return a forward and a backward pass."""
        model = copy.deepcopy(self.model)

        def compute() -> None:
            model.zero_grad()
            self._backward(model, None)

        return compute

    def wrapper(self) -> Callable[[], object]:
        """Return a step of `PlainWrapper`."""
        model = copy.deepcopy(self.model)
        sam = PlainWrapper(list(model.parameters()))
        return self._two_passes(model, sam.first_step, sam.second_step)

    def pytorch_optimizer(self) -> Callable[[], object]:
        """Return a step of pytorch-optimizer's SAM."""
        model = copy.deepcopy(self.model)
        sam = pytorch_optimizer_sam(list(model.parameters()))
        return self._two_passes(model, sam.first_step, sam.second_step)

    def _two_passes(self, model: nn.Module, first: Callable, second: Callable) -> Callable[[], object]:
        def step() -> None:
            for move in (first, second):
                model.zero_grad()
                self._backward(model, None)
                move()

        return step

    def _laid_out(self, channels_last: bool) -> tuple[nn.Module, Batch]:
        if not channels_last:
            return copy.deepcopy(self.model), self.batch
        layout = torch.channels_last
        return copy.deepcopy(self.model).to(memory_format=layout), Batch(
            self.batch.inputs.contiguous(memory_format=layout), self.batch.targets
        )

    def _backward(self, model: nn.Module, dtype: torch.dtype | None, batch: Batch | None = None) -> None:
        batch = batch or self.batch
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(batch.inputs)
        F.cross_entropy(logits.float(), batch.targets).backward()


def measure_whole_steps(report: Report, rounds: int, device: torch.device, *, quick: bool) -> None:
    """Compare SAM steps with their floor on networks with many weights and small batches."""
    rows = []
    for name, batch_size, bound in (("WRN-28-10", 2, 1.03), ("MLP 49 M", 32, 1.08)):
        case = Case(name, batch_size, device)
        contenders = {
            "floor": case.floor(), "wrapper": case.wrapper(), "pytorch-optimizer": case.pytorch_optimizer(),
            "ours": case.ours(), "SGD": case.sgd(foreach=False), "fused SGD": case.sgd(fused=True),
        }  # fmt: skip
        seconds = take_turns(contenders, rounds if not quick else max(rounds // 2, 5), device)
        over = {entry: ratio(seconds, entry, "floor") for entry in contenders}
        rows.append([
            f"{name}, batch {batch_size}", median(seconds, "floor") * 1e3, over["wrapper"], over["pytorch-optimizer"],
            over["ours"], spread(seconds, "ours", "floor"),
        ])  # fmt: skip
        report.check(f"time of a SAM step / its floor, {name}, batch {batch_size}", over["ours"], bound, at_most=True)
    columns = ["model", "floor, ms", "wrapper", "pytorch-optimizer", "ours", "+-"]
    report.table(
        "Time of a whole step / its floor, fp32", columns, rows, "Floor: 2 x (forward + backward) + one fused step."
    )


def measure_growth(report: Report, rounds: int, device: torch.device) -> None:
    """Compare SAM with SGD for several numbers of weights and batch sizes."""
    rows, worst = [], 0.0
    for name in ("MLP 1 M", "MLP 10 M", "MLP 49 M"):
        for batch_size in (32, 128, 512):
            case = Case(name, batch_size, device)
            contenders = {"SGD": case.sgd(foreach=False), "fused SGD": case.sgd(fused=True), "ours": case.ours()}
            seconds = take_turns(contenders, rounds, device)
            over, over_fused = (ratio(seconds, "ours", base) for base in ("SGD", "fused SGD"))
            worst = max(worst, over)
            rows.append([f"{name}, batch {batch_size}", median(seconds, "SGD") * 1e3, over, over_fused])
    report.table("Time of SAM / SGD", ["model", "SGD, ms", "SAM / SGD", "SAM / fused SGD"], rows)
    report.check("time of SAM / SGD, MLPs of 1 to 49 M", worst, 2.05, at_most=True)


def measure_groups(report: Report, rounds: int, device: torch.device) -> None:
    """Compare steps of a batch of 256 images in groups with one gradient of the batch."""
    counts, rows = (1, 2, 4, 8, 16, 32), []
    for name, side, most in (("small CNN", 28, rounds), ("ResNet-20", 32, 7), ("WRN-16-4", 32, 5)):
        case = Case(name, 256, device, side=side)
        measured = counts if name == "small CNN" else (1, 8)
        contenders = {"gradient": case.gradient()}
        contenders |= {str(count): case.ours(group_size=256 // count) for count in measured}
        clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        seconds = take_turns(contenders, min(rounds, most), device, clock)
        over = {count: ratio(seconds, str(count), "gradient") for count in measured}
        rows.append([name, *(over.get(count, "-") for count in counts), ratio(seconds, "8", "1")])
        rows[-1].append(spread(seconds, "8", "1"))
        report.check(f"time of {name}, m = 32 / m = 256", rows[-1][-2], 1.15, at_most=True)
        if name == "small CNN":
            report.check("time of 256 images in 4 groups / one gradient", over[4], 2.2, at_most=True)
            report.check("time of 256 images in 16 groups / one gradient", over[16], 3.0, at_most=True)
    report.table(
        "m-sharpness: step on a batch of 256 in groups, divided by one gradient of the batch",
        ["groups", *map(str, counts), "m = 32 / m = 256", "+-"],
        [["m", *(256 // count for count in counts), "", ""], *rows],
    )


def measure_resnet18(report: Report, rounds: int, device: torch.device) -> None:
    """Compare the steps of ResNet-18 in fp32 and bf16."""
    case = Case("ResNet-18", 64, device)
    contenders = {
        "wrapper, fp32": case.wrapper(), "SGD, fp32": case.sgd(foreach=False), "ours, fp32": case.ours(),
        "ours, fp32, channels_last": case.ours(channels_last=True), "ours, bf16": case.ours(torch.bfloat16),
        "ours, bf16, channels_last": case.ours(torch.bfloat16, channels_last=True),
        "floor, bf16, channels_last": case.floor(torch.bfloat16, channels_last=True),
    }  # fmt: skip
    seconds = take_turns(contenders, rounds, device)
    rows = [[entry, median(seconds, entry) * 1e3, 1 / ratio(seconds, entry, "wrapper, fp32")] for entry in contenders]
    report.table("ResNet-18, CIFAR shape, batch 64", ["step", "ms", "speed, wrapper = 1"], rows)
    best = "ours, bf16, channels_last"
    report.check(
        "speed of ResNet-18 in bf16 / wrapper in fp32", 1 / ratio(seconds, best, "wrapper, fp32"), 2.4, at_most=False
    )
    report.check("time of ResNet-18 SAM in bf16 / SGD in fp32", ratio(seconds, best, "SGD, fp32"), 1.0, at_most=True)


def measure_peak_memory(report: Report) -> None:
    """Measure the peak memory of a step beyond the weights, with the profiler, divided by the size of the weights."""
    kinds: dict[str, Callable[[Case], Callable[[], object]]] = {
        "SGD": lambda case: case.sgd(foreach=False),
        "fused SGD": lambda case: case.sgd(fused=True),
        "wrapper": Case.wrapper,
        "pytorch-optimizer": Case.pytorch_optimizer,
        "ours": Case.ours,
    }
    peaks = {name: _measure_peak(kind) for name, kind in kinds.items()}
    title = "Peak memory beyond the weights, as a multiple of the size of the weights (MLP 49 M)"
    report.table(title, list(peaks), [list(peaks.values())])
    report.check("peak memory minus SGD's / size of the weights", peaks["ours"] - peaks["SGD"], 0.7, at_most=True)


def _measure_peak(kind: Callable[["Case"], Callable[[], object]]) -> float:
    """Return the peak memory while a model is built and takes two steps, minus its weights, divided by their size."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case = Case("MLP 49 M", 32, torch.device("cpu"))
        step = kind(case)
        size = sum(param.numel() * 4 for param in case.model.parameters())
        del case.model  # the step has a copy
        step()
        step()
    level = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / size - 1


def profile_step(report: Report, rounds: int) -> None:
    """Profile a step."""
    case = Case("WRN-28-10", 2, torch.device("cpu"))
    step = case.ours()
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(rounds):
            step()
    parts = {"convolutions": "conv", "batch norm": "batch_norm", "w + eps": "addcmul", "base optimizer": "_fused_sgd",
             "norms": "dot"}  # fmt: skip
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total, rows, counted = sum(own.values()), [], set()
    for part, needle in parts.items():
        keys = [key for key in own if needle in key and key not in counted]
        counted.update(keys)
        rows.append([part, sum(own[key] for key in keys) / total * 100])
    rows.append(["the rest (ReLU, sums, autograd, Python)", 100 - sum(row[1] for row in rows)])
    report.table("Profile of a step: WRN-28-10, batch 2, fp32", ["part", "% of the time"], rows)


def main() -> int:
    """Measure, print, write."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--groups", action="store_true", help="only m-sharpness")
    options = parser.parse_args()
    device = torch.device(options.device)
    configure_torch(device)  # the allocator settings of sam-train, for all programs
    rounds = 9 if options.quick else 21
    report = Report("The SAM step", device)
    if options.groups:
        measure_groups(report, rounds, device)
        report.write(options.out, "groups")
        return 0
    names = ("ResNet-18", "WRN-28-10") if options.quick else ("ResNet-18", "ResNet-50", "WRN-28-10", "MLP 60x64")
    measured = {name: measure_arithmetic(name, 3 * rounds, device) for name in names}
    columns = ["weights", "SGD, ms", "fused SGD", "wrapper", "pytorch-optimizer", "ours", "+-"]
    report.table(
        "Step without forward and backward, divided by a plain SGD step", columns, [row for row, _ in measured.values()]
    )
    for name in ("ResNet-18", "WRN-28-10"):
        ratios = measured[name][1]
        report.check(f"time of arithmetic, {name}, ours / SGD", ratios["ours"], 1.4, at_most=True)
        report.check(
            f"time of arithmetic, {name}, wrapper / ours", ratios["wrapper"] / ratios["ours"], 2.5, at_most=False
        )
    measure_whole_steps(report, rounds, device, quick=options.quick)
    measure_resnet18(report, 3 if options.quick else 7, device)
    measure_groups(report, rounds, device)
    if device.type == "cpu":
        measure_peak_memory(report)
    measure_growth(report, 3 if options.quick else rounds, device)
    if device.type == "cpu":
        profile_step(report, 2 if options.quick else 5)
    report.write(options.out, "step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
