"""Compare the SAM step of two checkouts of this project, in CPU seconds of one thread.

    git worktree add ../before COMMIT
    python scripts/benchmarks/versions.py --before ../before [--steps 400] [--batch-size 128]

Each checkout has a process of its own with the same network, images and weights. They take turns step by step, the
first one alternately, so other work on the machine slows both down. The table gives the median of the ratio of the two
times of a turn and its standard error.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

from scripts.benchmarks.measuring import Report

PROGRAM = """
import sys, time, torch
from torch.nn import functional as F
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.models.resnet_cifar import ResNetCifar
try:
    from sam_runner.sam.batch import Batch
except ImportError:
    from sam_runner.sam.objective import Batch
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep

torch.set_num_threads(1)
torch.manual_seed(0)
name, size = sys.argv[1], int(sys.argv[2])
model = SmallCNN(10, 1) if name == "small CNN" else ResNetCifar(10, 3, depth=20)
images = torch.randn(size, 1, 8, 8) if name == "small CNN" else torch.randn(size, 3, 16, 16)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
step, batch = SamStep(Objective(model, F.cross_entropy), optimizer), Batch(images, torch.arange(size) % 10)
for line in sys.stdin:
    before = time.thread_time()
    step(batch, 0.05)
    print(time.thread_time() - before, flush=True)
"""


class Checkout:
    """A process that takes steps with the code of one checkout."""

    def __init__(self, folder: Path, model: str, batch_size: int) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, model, str(batch_size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip

    def measure(self) -> float:
        """Return the CPU seconds of one step."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def compare(before: Checkout, after: Checkout, num_steps: int) -> tuple[float, float, float]:
    """Return the median ms of a step before, the median of after / before - 1 in percent, and its standard error."""
    for checkout in (before, after):
        for _ in range(10):
            checkout.measure()
    seconds, ratios = [], []
    for turn in range(num_steps):
        times = {}
        for checkout in (before, after) if turn % 2 else (after, before):
            times[checkout] = checkout.measure()
        seconds.append(times[before])
        ratios.append(100 * (times[after] / times[before] - 1))
    # Of a normal distribution, the median has 1.25 times the standard error of the mean.
    quartiles = statistics.quantiles(ratios)
    deviation = (quartiles[2] - quartiles[0]) / 1.349
    error = 1.2533 * deviation / math.sqrt(num_steps)
    return 1000 * statistics.median(seconds), statistics.median(ratios), error


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="folder of the older checkout")
    parser.add_argument("--after", type=Path, default=Path(__file__).parents[2], help="default: this checkout")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    import torch

    report, rows = Report("Two versions", torch.device("cpu")), []
    for model in ("small CNN", "ResNet-20"):
        checkouts = [Checkout(folder, model, arguments.batch_size) for folder in (arguments.before, arguments.after)]
        rows.append([model, *compare(*checkouts, arguments.steps)])
        for checkout in checkouts:
            checkout.close()
    report.table(
        f"A SAM step of {arguments.batch_size} images, {arguments.steps} rounds, CPU time of one thread",
        ["model", "before, ms", "difference, %", "standard error, %"],
        rows,
    )


if __name__ == "__main__":
    main()
