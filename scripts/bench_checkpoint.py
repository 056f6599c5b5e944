"""What checkpoints cost: the same run with and without them, as pairs of whole processes.

    python scripts/bench_checkpoint.py [--pairs 7] [--out outputs/bench] [-- SETTINGS...]

Without means that `CheckpointFolder.save` does nothing; the numbers that a run logs are flushed in both.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import Report, arguments

WITHOUT = "from sam_runner import checkpoint; checkpoint.CheckpointFolder.save = lambda *_, **__: None; "
RUN = "import sys; from sam_runner import cli; sys.exit(cli.train())"
KINDS = {
    "digits, defaults": ["optimizer=sam"],
    "digits, a save after every epoch": ["optimizer=sam", "checkpoint.least_seconds=0"],
    "ResNet-20 (0.27 M), 3 epochs of 30 steps": [
        "optimizer=sam", "model=resnet20", "data=synthetic", "data.channels=3", "data.image_size=32",
        "data.num_train=1920", "data.num_test=64", "batch_size=64", "epochs=3", "precision=bf16",
    ],
}  # fmt: skip


def seconds(program: str, settings: list[str], folder: str) -> float:
    """Of a whole process."""
    started = time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if key != "SAM_RUNNER_STARTED"}
    words = [sys.executable, "-c", program, *settings, "device=cpu", f"run_dir={folder}"]
    subprocess.run(words, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def main() -> int:
    """Measure in turns, print, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    report, rows = Report("Checkpoints", torch.device("cpu")), []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, settings) in enumerate(KINDS.items()):
            pairs = []
            for number in range(options.pairs):
                order = [("", "with"), (WITHOUT, "without")][:: 1 if number % 2 else -1]
                took = {
                    kind: seconds(before + RUN, settings, f"{folder}/{index}-{number}-{kind}") for before, kind in order
                }
                pairs.append((took["with"], took["without"]))
            saves = len(list(Path(folder, f"{index}-0-with", "checkpoints").glob("*.pt")))
            costs = [100 * (first / second - 1) for first, second in pairs]
            low, _, high = statistics.quantiles(costs, n=4)
            rows.append([
                name, statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs),
                statistics.median(costs), (high - low) / 2, saves,
            ])  # fmt: skip
            print(rows[-1], flush=True)
    columns = ["run", "with, s", "without, s", "cost, %", "+-", "checkpoints left"]
    report.table(
        f"Whole processes, {options.pairs} pairs",
        columns,
        rows,
        "Cost: median of the pairs; +-: half their interquartile range.",
    )
    report.check("cost of checkpoints at the defaults, %", rows[0][3], 2.0, at_most=True)
    report.write(options.out, "checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
