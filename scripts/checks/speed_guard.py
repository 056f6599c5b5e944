"""Check that steps, data path and start-up have not become slower; exit code 1 if a bound is broken.

The bounds are wide, because the machine may be busy. Each figure is the median of a ratio between two functions that
took turns, never an absolute time.
"""

import sys

import torch

from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.data import measure_in_memory
from scripts.benchmarks.measuring import Report, ratio, take_turns
from scripts.benchmarks.startup import command
from scripts.benchmarks.step import Case, measure_arithmetic


def main() -> int:
    """Measure and compare with the bounds."""
    device = torch.device("cpu")
    configure_torch(device)  # otherwise the kernel's zeroing of pages would dominate
    report = Report("Guard", device)
    _, ratios = measure_arithmetic("WRN-28-10", 7, device)
    report.check("arithmetic of a step, in SGD steps", ratios["ours"], 2.0, at_most=True)
    report.check("arithmetic of a step over the wrapper's", ratios["ours"] / ratios["wrapper"], 0.7, at_most=True)
    case = Case("MLP 10 M", 32, device)
    seconds = take_turns({"floor": case.floor(), "ours": case.ours()}, 11, device)
    report.check("SAM step over its floor, MLP 10 M", ratio(seconds, "ours", "floor"), 1.6, at_most=True)
    case = Case("small CNN", 256, device, side=28)
    seconds = take_turns({"gradient": case.gradient(), "ours": case.ours(group_size=64)}, 3, device)
    report.check("time of 256 images in 4 groups / one gradient", ratio(seconds, "ours", "gradient"), 2.8, at_most=True)
    data = Report("Guard, data", device)
    measure_in_memory(data, 1, device)
    report.check("batched augmentation over PIL + DataLoader", data.checks[1]["value"], 8, at_most=False)
    commands = {"refused": command("rho=-1", code=2), "torch": command("-c", "import torch", module=False)}
    seconds = take_turns(commands, 3, device)
    report.check("a refused command, in imports of torch", ratio(seconds, "refused", "torch"), 0.7, at_most=True)
    return 0 if all(entry["met"] for entry in report.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
