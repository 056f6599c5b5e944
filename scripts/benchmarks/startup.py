"""Measure how long a command takes: whole processes that take turns.

python scripts/benchmarks/startup.py [--quick]
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch

from scripts.benchmarks.measuring import Report, make_parser, median, ratio, take_turns

FIRST_STEP = """
import os, sys
from sam_runner.commands import train as train_command
from sam_runner.sam import step as sam
step = sam.SamStep.__call__
sam.SamStep.__call__ = lambda *arguments: (step(*arguments), os._exit(0))
sys.exit(train_command.main())
"""


def command(*words: str, code: int = 0, module: bool = True) -> Callable[[], None]:
    """Return a function that runs python with these arguments and requires the exit code."""
    start = [sys.executable, "-m", "sam_runner"] if module else [sys.executable]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*start, *words], cwd=folder, capture_output=True, text=True)
        if done.returncode != code:
            raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stderr[-2000:]}")

    return run


def main() -> int:
    """Measure, print the table and write the report."""
    options = make_parser(__doc__.splitlines()[0]).parse_args()
    report = Report("Start-up", torch.device("cpu"))
    contenders = {
        "python -c pass": command("-c", "pass", module=False),
        "python -c 'import torch'": command("-c", "import torch", module=False),
        "sam-train --help": command("--help"),
        "sam-train rho=-1 (refused)": command("rho=-1", code=2),
        "sam-train optimzer=sam (refused)": command("optimzer=sam", code=2),
        "sam-train optimizer=sam rho=0.05, up to the end of the first step": command(
            "-c", FIRST_STEP, "optimizer=sam", "rho=0.05", module=False
        ),
        "sam-train optimizer=sam rho=0.05 max_steps=1": command("optimizer=sam", "rho=0.05", "max_steps=1"),
    }
    seconds = take_turns(contenders, 5 if options.quick else 15, torch.device("cpu"))
    rows = [[name, median(seconds, name), ratio(seconds, name, "python -c 'import torch'")] for name in contenders]
    report.table(
        "Whole processes",
        ["command", "s", "s / s of import torch"],
        rows,
        "The last row includes a step, an evaluation and a checkpoint.",
    )
    for name in ("sam-train --help", "sam-train rho=-1 (refused)", "sam-train optimzer=sam (refused)"):
        report.check(f"{name}, s", median(seconds, name), 0.6, at_most=True)
    report.check("first step after start, s", median(seconds, list(contenders)[-2]), 4.0, at_most=True)
    report.write(options.out, "startup")
    return 0


if __name__ == "__main__":
    sys.exit(main())
