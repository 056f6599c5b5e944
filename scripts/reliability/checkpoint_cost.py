"""Measure the cost of checkpoints: the same run with and without saving, as pairs of whole processes.

    python scripts/reliability/checkpoint_cost.py [--pairs 7] [--out outputs/bench]

Whole processes on a shared machine differ by more than a save takes. Therefore the time inside the saves is measured
too.
"""

import os
import statistics
import subprocess
import sys
import tempfile

import torch

from scripts.benchmarks.measuring import Report, make_parser

PROGRAM = """
import sys, time
started = time.perf_counter()
from sam_runner.commands import train as train_command
from sam_runner.training import loop
inside, save = [], loop.save_checkpoint
def timed(*arguments, **options):
    begun = time.perf_counter()
    if {saves}:
        save(*arguments, **options)
    inside.append(time.perf_counter() - begun)
loop.save_checkpoint = timed
code = train_command.main()
print(len(inside), sum(inside), time.perf_counter() - started, file=sys.stderr)
sys.exit(code)
"""
KINDS = {
    "digits, defaults": ["optimizer=sam"],
    "digits, a save after every epoch": ["optimizer=sam", "checkpoint.min_interval=0"],
}  # fmt: skip


def measure_run(saves: bool, settings: list[str], folder: str) -> tuple[int, float, float]:
    """Return the number of saves, the seconds inside them, and the seconds of the whole process."""
    environment = {key: value for key, value in os.environ.items() if key != "SAM_RUNNER_STARTED"}
    words = [sys.executable, "-c", PROGRAM.format(saves=saves), *settings, "device=cpu", f"run_dir={folder}"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    number, inside, whole = done.stderr.splitlines()[-1].split()
    return int(number), float(inside), float(whole)


def main() -> int:
    """Measure, print the table and write the report."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    report, rows = Report("Checkpoints", torch.device("cpu")), []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, settings) in enumerate(KINDS.items()):
            pairs = []
            for number in range(options.pairs):
                order = (True, False) if number % 2 else (False, True)
                took = {saves: measure_run(saves, settings, f"{folder}/{index}-{number}-{saves}") for saves in order}
                pairs.append((took[True], took[False]))
            parts = [100 * first[1] / first[2] for first, _ in pairs]
            costs = [100 * (first[2] / second[2] - 1) for first, second in pairs]
            low, _, high = statistics.quantiles(costs, n=4)
            rows.append([
                name, pairs[0][0][0], statistics.median(first[2] for first, _ in pairs),
                statistics.median(second[2] for _, second in pairs), statistics.median(parts),
                statistics.median(costs), (high - low) / 2,
            ])  # fmt: skip
            print(rows[-1], flush=True)
    columns = ["run", "saves", "with, s", "without, s", "inside saves, % of the process", "with over without, %", "+-"]
    note = "With over without: median of the pairs; +-: half their interquartile range."
    report.table(f"Whole processes, {options.pairs} pairs", columns, rows, note)
    report.check("time inside saves at the defaults, %", rows[0][4], 2.0, at_most=True)
    report.write(options.out, "checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
