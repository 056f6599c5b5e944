"""Measure the time of a step of each method relative to SGD's and SAM's, and count its passes.

    python scripts/benchmarks/methods.py [--quick]

All contenders run in one process in turns of ten steps on the same batches, with the same network and a rate so small
that the weights stay where they are. On a CPU the time is that of the processor, which other work changes little: set
OMP_NUM_THREADS=1.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from sam_runner.sam import methods
from sam_runner.sam.batch import Batch
from sam_runner.sam.method import Method
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.measuring import Report, make_parser, median, ratio, spread, take_turns
from scripts.benchmarks.step import MODELS, SGD

STEPS = 10  # of a turn: two periods of k = 5
TOTAL = 10_000
METHODS: dict[str, Callable[[], Method]] = {
    "sgd": methods.Plain,
    "sam": methods.Sam,
    "asam": methods.Asam,
    "fisher_sam": methods.FisherSam,
    "friendly_sam": methods.FriendlySam,
    "sam_on": methods.SamOn,
    "layerwise_sam": methods.LayerwiseSam,
    "momentum_sam": methods.MomentumSam,
    "esam": methods.Esam,
    "gsam": methods.Gsam,
    "gradient_norm": methods.GradientNorm,
    "wsam": methods.Wsam,
    "looksam": methods.LookSam,
    "interval": methods.Interval,
    "random_sam": lambda: methods.RandomSam(total_steps=TOTAL, seed=0),
    "ae_sam": lambda: methods.AeSam(0.0, 0.0, total_steps=TOTAL),
    "late": lambda: methods.Late(0.2, total_steps=TOTAL),
}
PERIODIC = ("looksam", "interval")


class Turn:
    """Ten steps of a method; counts the gradients."""

    def __init__(self, model: str, make: Callable[[], Method], size: int, channels: int, device: torch.device) -> None:
        torch.manual_seed(0)
        network = MODELS[model]().to(device)
        optimizer = torch.optim.SGD(network.parameters(), fused=True, **SGD)
        self.step = SamStep(Objective(network, F.cross_entropy), optimizer, make())
        draws = torch.Generator().manual_seed(1)
        images = [torch.randn(128, channels, size, size, generator=draws).to(device) for _ in range(STEPS)]
        labels = torch.arange(128, device=device) % 10
        self.batches = [Batch(part, labels) for part in images]
        self.number, self.gradients = 0, 0.0

    def __call__(self) -> None:
        for batch in self.batches:
            self.gradients += self.step(batch, 0.05, self.number).passes.gradient
            self.number += 1


def measure(report: Report, model: str, size: int, channels: int, rounds: int, device: torch.device) -> None:
    """Measure all methods with one network."""
    turns = {name: Turn(model, make, size, channels, device) for name, make in METHODS.items()}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = take_turns(turns, rounds, device, clock)
    rows = [
        [
            name, median(seconds, name) / STEPS * 1e3, turn.gradients / turn.number, ratio(seconds, name, "sgd"),
            spread(seconds, name, "sgd"), ratio(seconds, name, "sam"),
        ]
        for name, turn in turns.items()
    ]  # fmt: skip
    columns = ["method", "ms a step", "gradients a step", "over SGD", "±", "over SAM"]
    report.table(f"{model}, 128 images of {size}x{size} pixels", columns, rows)
    for name in PERIODIC:
        report.check(f"{name} over SGD, {model}", ratio(seconds, name, "sgd"), 1.25, at_most=True)


def main() -> int:
    """Measure and write the report."""
    options = make_parser((__doc__ or "").splitlines()[0]).parse_args()
    device = torch.device(options.device)
    configure_torch(device)
    report = Report("The methods", device)
    rounds = 3 if options.quick else 21
    measure(report, "small CNN", 8, 1, rounds, device)
    if not options.quick:
        measure(report, "thin ResNet-32", 16, 3, rounds // 3, device)
    report.write(options.out, "methods")
    return 0


if __name__ == "__main__":
    sys.exit(main())
