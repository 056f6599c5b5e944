"""Compare joint steps of several seeds (sweep.batch_seeds) with separate steps.

    python scripts/benchmarks/joint_seeds.py [--quick] [--device cuda] [--batch-size 128]

Both sides make the same SAM steps on the same batches; only the passes differ. On a CPU the time is that of the
processor, which other programs of the machine do not change.
"""

import copy
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.resnet_cifar import ResNetCifar
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.sam.batch import Batch
from sam_runner.sam.network.joint_passes import JointPasses
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.measuring import Report, make_parser, median, ratio, take_turns

NUM_STEPS, RHO = 20, 0.05


def build_mlp() -> nn.Module:
    """Return three linear layers for the digits: 64, 128, 128, 10."""
    layers = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 64-128-128-10": (build_mlp, (1, 8, 8)),
    "small CNN, 8 px": (lambda: SmallCNN(10, 1), (1, 8, 8)),
    "ResNet-20, 16 px": (lambda: ResNetCifar(10, 3), (3, 16, 16)),
}


class Seeds:
    """Networks of several seeds with their steps and batches.

    Args:
        networks: The networks; they are copied.
        batches: Batches of each network.
        joint: Makes the passes together; None: one by one.
    """

    def __init__(self, networks: list[nn.Module], batches: list[list[Batch]], joint: JointPasses | None) -> None:
        self.networks, self.batches, self._joint = copy.deepcopy(networks), batches, joint
        self._steps = [self._build_step(network) for network in self.networks]

    def _build_step(self, network: nn.Module) -> SamStep:
        forward = None if self._joint is None else self._joint.forward(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
        return SamStep(Objective(network, F.cross_entropy, forward=forward), optimizer)

    def train(self, num_steps: int) -> None:
        """Make steps with all networks; one by one, or in one thread for each."""
        calls = [partial(self._train, number, num_steps) for number in range(len(self.networks))]
        if self._joint is None:
            for call in calls:
                call()
        elif error := next(filter(None, self._joint.run(calls)), None):
            raise error

    def _train(self, number: int, num_steps: int) -> None:
        for batch in self.batches[number][:num_steps]:
            self._steps[number](batch, RHO)


def difference(first: Seeds, second: Seeds) -> float:
    """Return the largest difference of a weight, relative to the largest weight."""
    weights = [torch.cat([p.detach().flatten() for m in s.networks for p in m.parameters()]) for s in (first, second)]
    return float((weights[0] - weights[1]).abs().max() / weights[0].abs().max())


def build(name: str, count: int, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Seeds, Seeds]:
    """Return the seeds one by one and together, from the same weights."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    networks = [make().to(device, dtype) for _ in range(count)]
    centers = torch.randn(10, *shape)  # classes that can be learned

    def draw() -> Batch:
        labels = torch.randint(10, (batch_size,))
        images = centers[labels] + torch.randn(batch_size, *shape)
        return Batch(images.to(device, dtype), labels.to(device))

    batches = [[draw() for _ in range(NUM_STEPS)] for _ in range(count)]
    return Seeds(networks, batches, None), Seeds(networks, batches, JointPasses(lambda outputs: outputs))


def measure_times(report: Report, counts: list[int], rounds: int, batch_size: int, device: torch.device) -> None:
    """Add the table of times: one row for each network and number of seeds."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    rows: list[list] = []
    for name in NETWORKS:
        num_steps = 10 if name.startswith("MLP") else 1
        for count in counts:
            alone, together = build(name, count, batch_size, device, torch.float32)
            sides = {"one by one": partial(alone.train, num_steps), "together": partial(together.train, num_steps)}
            seconds = take_turns(sides, rounds, device, clock)
            times = [1e3 * median(seconds, side) / num_steps for side in sides]
            rows.append([name, count, *times, ratio(seconds, "one by one", "together")])
    kind = "CPU time" if clock is time.process_time else "Time"
    report.table(
        f"SAM steps of several seeds, batch {batch_size}",
        ["network", "seeds", "separate, ms", "joint, ms", "speed-up"],
        rows,
        f"{kind} of one step of all seeds.",
    )


def measure_differences(report: Report, device: torch.device) -> None:
    """Add the table of differences of the weights: one row for each network.

    The last column shows the effect of rounding alone: separate steps from weights that differ in the last bit.
    """
    rows: list[list] = []
    for name in NETWORKS:
        found: list[float] = []
        for dtype in (torch.float64, torch.float32):
            alone, together = build(name, 2, 16, device, dtype)
            moved = Seeds(alone.networks, alone.batches, None)
            for param in (param for network in moved.networks for param in network.parameters()):
                param.data = torch.nextafter(param.data, torch.full_like(param, torch.inf))
            for num_steps in (1, NUM_STEPS - 1):
                for seeds in (alone, together, moved):
                    seeds.train(num_steps)
                found.append(difference(alone, together))
        rows.append([name, *(f"{value:.0e}" for value in [*found, difference(alone, moved)])])
    columns = [f"{dtype}, {steps}" for dtype in ("fp64", "fp32") for steps in ("1 step", f"{NUM_STEPS} steps")]
    report.table(
        "Differences between the weights of joint and of separate steps",
        ["network", *columns, f"fp32, {NUM_STEPS} steps, two separate runs"],
        rows,
        "Two seeds, batch 16; the largest difference relative to the largest weight.",
    )


def main() -> int:
    """Run the benchmark."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    device = torch.device(options.device)
    configure_torch(device)
    report = Report("Joint passes of several seeds", device)
    counts, rounds = ([2, 4], 3) if options.quick else ([1, 2, 4, 8], 5)
    measure_times(report, counts, rounds, options.batch_size, device)
    measure_differences(report, device)
    report.write(options.out, f"seeds-{options.batch_size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
