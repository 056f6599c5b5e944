"""Measure how seconds and memory grow with weights, images, files, classes, runs, jobs, ranks and checkpoints.

    python scripts/growth/measure_growth.py [--quick] [--only files classes] [--out outputs/bench]

Each part of each size runs in a process of its own, on made files below the folder for temporary files, which are
deleted. The full sizes need 1.4 million inodes and 5 GB of memory. Measurements are kept in growth-measured.json:
`--only` measures some quantities again and reports all. The exponent of a part is that between its two largest sizes:
1 says that twice as much takes twice as long. It is computed from CPU seconds, which other work on the machine changes
less than the time that has passed.
"""

import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from scripts.benchmarks.measuring import Report, format_cell, make_parser
from scripts.growth.data import CLASSES, FILES, IMAGES
from scripts.growth.quantity import Quantity, measure
from scripts.growth.runs import CHECKPOINTS, JOBS, ROWS, RUNS
from scripts.growth.training import RANKS, TENSORS, WEIGHTS

QUANTITIES: dict[str, Quantity] = {
    "weights": WEIGHTS, "tensors": TENSORS, "ranks": RANKS, "images": IMAGES, "files": FILES, "classes": CLASSES,
    "runs": RUNS, "jobs": JOBS, "checkpoints": CHECKPOINTS, "rows": ROWS,
}  # fmt: skip
MAX_EXPONENT = 1.15  # for linear work; the excess over 1 is noise, and memory that no cache holds any more
MIN_SECONDS, MIN_MIB = 0.05, 20.0  # smaller measurements have no exponent
TARGETS = (  # quantity, part, size, column, bound
    ("files", "cached list read and checked", 1_281_167, "cpu", 2.0),
    ("files", "start to the first step", 1_281_167, "cpu", 10.0),
    ("runs", "report written", 1000, "cpu", 5.6),
)
Found = Mapping[str, float]
Measured = dict[str, dict[str, dict[int, Found]]]  # by quantity, part and size


def measure_in_process(name: str, part: str, size: int, folder: Path) -> Found:
    """Measure a part in a forked process: what this process has imported is there already."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def work() -> None:
        writer.send(measure(QUANTITIES[name].parts[part], folder, size))

    process = context.Process(target=work)
    process.start()
    writer.close()
    found: Found = reader.recv()  # an EOFError if the process has failed: its message is above
    process.join()
    print(f"{name} {size:,}: {part}: {found['wall']:.3g} s, CPU {found['cpu']:.3g}, {found['mib']:.3g} MiB", flush=True)
    return found


def measure_quantity(name: str, *, quick: bool) -> dict[str, dict[int, Found]]:
    """Measure all parts and sizes of a quantity."""
    quantity = QUANTITIES[name]
    found: dict[str, dict[int, Found]] = {part: {} for part in quantity.parts}
    for size in quantity.quick if quick else quantity.sizes:
        for _ in range(quantity.times):
            with tempfile.TemporaryDirectory(prefix="growth-") as text:
                if quantity.prepare is not None:
                    quantity.prepare(Path(text), size)
                for part, sizes in found.items():
                    again = measure_in_process(name, part, size, Path(text))
                    sizes[size] = min(sizes.get(size, again), again, key=lambda one: one["cpu"])
    return found


def exponent(found: Mapping[int, Found], column: str, smallest: float) -> float:
    """Return the slope between the two largest sizes on logarithmic axes; NaN where one is too small to measure."""
    sizes = sorted(found)[-2:]
    values = [found[size][column] for size in sizes]
    if len(sizes) < 2 or min(values) < smallest:
        return math.nan
    return math.log(values[1] / values[0]) / math.log(sizes[1] / sizes[0])


def report_measured(report: Report, measured: Measured) -> None:
    """Add the table of all measurements with their exponents, and the targets."""
    rows = []
    for name, parts in measured.items():
        for part, found in parts.items():
            sizes = sorted(found)
            row = [f"{QUANTITIES[name].unit}: {part}", "; ".join(f"{size:,}" for size in sizes)]
            for column, smallest in (("cpu", MIN_SECONDS), ("mib", MIN_MIB)):
                slope = exponent(found, column, smallest)
                row.append("; ".join(format_cell(found[size][column]) for size in sizes))
                row.append("-" if math.isnan(slope) else f"{slope:.2f}")
            rows.append(row)
    columns = ["quantity: part", "sizes", "CPU seconds", "exponent", "MiB", "exponent"]
    note = (
        f"MiB: growth of the part's peak memory. The exponent is that between the two largest sizes. "
        f"-: less than {MIN_SECONDS:g} s or {MIN_MIB:g} MiB at the smaller one."
    )
    report.table("Measurements", columns, rows, note)
    for name, parts in measured.items():
        for part, found in parts.items():
            time = exponent(found, "cpu", MIN_SECONDS)
            if not math.isnan(time):
                report.check(f"{QUANTITIES[name].unit}, {part}: exponent", time, MAX_EXPONENT, at_most=True)
    for name, part, size, column, bound in TARGETS:
        if size in measured.get(name, {}).get(part, {}):
            value = measured[name][part][size][column]
            report.check(f"{size:,} {QUANTITIES[name].unit}, {part}, CPU s", value, bound, at_most=True)


def draw(measured: Measured, column: str, title: str, smallest: float, path: Path) -> None:
    """Draw a panel for each quantity, with the exponents in its legend and a line of exponent 1."""
    columns = 4
    num_rows = -(-len(measured) // columns)
    figure, grid = plt.subplots(
        num_rows, columns, figsize=(4 * columns, 3.4 * num_rows), squeeze=False, layout="constrained"
    )
    for axes, (name, parts) in zip(grid.flat, measured.items(), strict=False):
        for part, found in parts.items():
            sizes = sorted(size for size in found if found[size][column] > 0)
            slope = exponent(found, column, smallest)
            label = part if math.isnan(slope) else f"{part}: {slope:.2f}"
            axes.plot(sizes, [found[size][column] for size in sizes], marker="o", markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel=QUANTITIES[name].unit, ylabel=title)
        sizes = sorted({size for found in parts.values() for size in found})
        top = max(found[size][column] for found in parts.values() for size in found)
        line = [max(top, smallest) * size / sizes[-1] for size in sizes]
        axes.plot(sizes, line, color="grey", linestyle=":", linewidth=1)
        axes.legend(fontsize=7, loc="upper left")
        axes.grid(alpha=0.25)
    for axes in list(grid.flat)[len(measured) :]:
        axes.set_visible(False)
    with plt.rc_context({"svg.hashsalt": "growth", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def read_measured(path: Path) -> Measured:
    """Return the measurements of earlier calls, in the order of `QUANTITIES`."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {
        name: {part: {int(size): values for size, values in sizes.items()} for part, sizes in found[name].items()}
        for name in QUANTITIES
        if name in found
    }


def main() -> int:
    """Measure, print the tables, and write the report and the plots."""
    plt.switch_backend("Agg")
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=QUANTITIES, default=list(QUANTITIES), help="none: report again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "growth-measured.json"
    for name in options.only:
        measured = read_measured(kept)
        measured[name] = measure_quantity(name, quick=options.quick)
        kept.write_text(json.dumps(measured, indent=1) + "\n")
    measured = read_measured(kept)
    report = Report("Growth", torch.device("cpu"))
    report_measured(report, measured)
    report.write(options.out, "growth")
    draw(measured, "cpu", "CPU seconds", MIN_SECONDS, options.out / "growth-seconds.svg")
    draw(measured, "mib", "MiB", MIN_MIB, options.out / "growth-memory.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
