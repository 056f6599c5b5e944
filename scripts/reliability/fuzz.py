"""Random trials: command lines, damaged run folders, kills, full disks, memory over a long time.

    python scripts/reliability/fuzz.py [--parts settings lines folders disk kills leaks] [--seed 0]
                                       [--minutes 5 | --count 100]

Each part repeats trials until its share of the time or its number is used up. A trial draws from a generator of its
own, seeded by the seed, the part and the number of the trial, so ``--parts lines --seed 7 --first 123 --count 1``
repeats one. Failures are printed with that command, and the exit code is 1. The report is outputs/fuzz/fuzz.json.
"""

import argparse
import os
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from scripts.benchmarks.measuring import Report
from scripts.reliability.fuzzing.disk import Disk
from scripts.reliability.fuzzing.folders import Folders
from scripts.reliability.fuzzing.kills import KINDS, Kills
from scripts.reliability.fuzzing.leaks import Leaks
from scripts.reliability.fuzzing.lines import Lines
from scripts.reliability.fuzzing.page import write_page
from scripts.reliability.fuzzing.processes import preload
from scripts.reliability.fuzzing.settings import Settings

torch.set_num_threads(1)
PARTS: dict[str, Callable] = {
    "settings": Settings,
    "lines": Lines,
    "folders": Folders,
    "disk": Disk,
    "kills": Kills,
    "leaks": Leaks,
}


def run_part(name: str, options: argparse.Namespace, report: Report, seconds: float) -> int:
    """Run the trials of a part; return the number that broke a rule."""
    rows: Counter = Counter()
    broken, number, began = 0, options.first, time.monotonic()
    words = f"--parts {name} --seed {options.seed}"
    if name == "kills" and options.kills:
        words += f" --kills {shlex.join(options.kills)}"
    with tempfile.TemporaryDirectory() as folder:
        part = PARTS[name](Path(folder))
        while number < options.first + (options.count or 10**9) and time.monotonic() < began + seconds:
            what, faults, details = part.try_one(random.Random(f"{options.seed} {name} {number}"))
            rows[what] += 1
            broken += bool(faults)
            if faults:
                repeat = f"{words} --first {number} --count 1"
                print(f"FAILED {', '.join(faults)}\n  {repeat}\n{details}\n", flush=True)
            number += 1
    trials = rows.total()
    repeat = f"{words}{f' --first {options.first}' * bool(options.first)} --count {trials}"
    note = f"{repeat} ({time.monotonic() - began:,.0f} s)"
    table = [[what, count] for what, count in rows.most_common()]
    report.table(part.title, ["what happened", "trials"], [*table, ["all", trials], ["broke a rule", broken]], note)
    return broken


def main() -> int:
    """Run the trials; return exit code 1 if one broke a rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial of each part")
    parser.add_argument("--count", type=int, help="trials of each part; default: as many as there is time for")
    parser.add_argument("--minutes", type=float, help="time for all parts together; default: 5, with --count no limit")
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz"))
    parser.add_argument("--kills", nargs="+", choices=KINDS, metavar="KIND", help=f"default: {', '.join(KINDS)}")
    parser.add_argument("--epochs", type=int, default=1000, help="of a run of the part leaks")
    parser.add_argument("--jobs", type=int, default=500, help="of a sweep of the part leaks")
    parser.add_argument("--page", nargs="+", type=Path, help="add rows of these fuzz.json to docs/reliability.md")
    options = parser.parse_args()
    if options.page:
        write_page(options.page)
        return 0
    minutes = options.minutes or (5.0 if options.count is None else 1e9)
    report = Report("Random trials", torch.device("cpu"))
    preload()
    Leaks.epochs, Leaks.jobs = options.epochs, options.jobs
    Kills.kinds = tuple(options.kills or KINDS)
    broken = sum(run_part(name, options, report, 60 * minutes / len(options.parts)) for name in options.parts)
    report.write(options.out, "fuzz")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
