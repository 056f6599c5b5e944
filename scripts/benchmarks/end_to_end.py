"""Compare sam-train with a typical script on Fashion-MNIST: whole processes that take turns.

    python scripts/benchmarks/end_to_end.py ROOT [--quick] [--seeds 3] [--steps N] [--kinds NAME...]

ROOT holds Fashion-MNIST (data.root of data=fashion_mnist). Network, batch size, learning rate, rho and augmentation are
the same. --quick takes 40 steps instead of two epochs and does not report accuracy. --kinds chooses rows of the table.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from scripts.benchmarks.measuring import Report, make_parser

HERE = Path(__file__).resolve().parent
SETTINGS = ["data=fashion_mnist", "augment=basic", "batch_size=256", "lr=0.05", "optimizer=sam", "rho=0.05", "epochs=2"]
PLAIN = ["precision=fp32", "channels_last=false"]


def run_typical(root: str, seed: int, steps: int, workers: int) -> dict[str, float]:
    """Run typical_script.py; return its results and the seconds of the process as ``whole``."""
    words = [root, "--workers", workers, "--seed", seed, "--max-steps", steps]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / "typical_script.py"), *map(str, words)], check=True, capture_output=True, text=True
    )
    whole = time.perf_counter() - started
    return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}


def run_ours(root: str, seed: int, steps: int, device: str, more: list[str]) -> dict[str, float]:
    """Run sam-train; return the same results as `run_typical`."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        limit = [f"max_steps={steps}"] if steps else []
        words = [
            *SETTINGS,
            f"data.root={root}",
            f"seed={seed}",
            f"run_dir={run_dir}",
            f"device={device}",
            *limit,
            *more,
        ]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sam_runner", *words], check=True, capture_output=True, text=True)
        whole = time.perf_counter() - started
        result = json.loads((run_dir / "result.json").read_text())
    return {
        "images_per_second": result["images_per_second"], "accuracy": result["final"]["test/accuracy"], "whole": whole,
    }  # fmt: skip


def main() -> int:
    """Measure, print the table and write the report."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="number of steps; default: two epochs")
    parser.add_argument("--kinds", nargs="*", help="names of the rows to compare; default: all")
    options = parser.parse_args()
    steps, seeds = (40, 2) if options.quick else (options.steps, options.seeds)
    report = Report("End to end: Fashion-MNIST, small CNN, batch 256, SAM", torch.device(options.device))
    kinds = {
        "typical script": lambda seed: run_typical(options.root, seed, steps, 0),
        "typical script, 2 workers": lambda seed: run_typical(options.root, seed, steps, 2),
        "sam-train, fp32, no channels_last": lambda seed: run_ours(options.root, seed, steps, options.device, PLAIN),
        "sam-train, fp32": lambda seed: run_ours(options.root, seed, steps, options.device, ["precision=fp32"]),
        "sam-train": lambda seed: run_ours(options.root, seed, steps, options.device, []),
    }
    kinds = {kind: run for kind, run in kinds.items() if not options.kinds or kind in options.kinds}
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for seed in range(seeds):
        for kind, run in kinds.items():
            results[kind].append(run(seed))
            print(kind, seed, {key: round(value, 4) for key, value in results[kind][-1].items()}, flush=True)

    def median(kind: str, key: str) -> float:
        return statistics.median(entry[key] for entry in results[kind])

    base = median("typical script", "images_per_second")
    rows = []
    for kind, entries in results.items():
        accuracies = [100 * entry["accuracy"] for entry in entries]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        accuracy = "-" if options.quick else f"{statistics.mean(accuracies):.2f} +- {spread:.2f}"
        speed = median(kind, "images_per_second")
        rows.append([kind, speed, speed / base, median(kind, "whole"), accuracy])
    columns = ["program", "images/s in training", "speed-up", "whole process, s", "test accuracy, %"]
    measured = "the test accuracy is not measured" if options.quick else "accuracy: mean and standard deviation"
    note = f"Medians of {seeds} seeds; {measured}."
    report.table("Two epochs" if not steps else f"{steps} steps", columns, rows, note)
    for way, other, bound in (
        ("sam-train", "typical script", 2.7), ("sam-train, fp32", "typical script", 1.6),
        ("sam-train", "typical script, 2 workers", 3.0),
    ):  # fmt: skip
        if {way, other} <= kinds.keys():
            times = median(way, "images_per_second") / median(other, "images_per_second")
            report.check(f"images/s of {way} / {other}", times, bound, at_most=False)
    report.write(options.out, "end_to_end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
