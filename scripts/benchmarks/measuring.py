"""Time functions in turns, and report medians together with the machine and versions."""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

from sam_runner.runs.environment import read_processor

Seconds = dict[str, list[float]]


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Return the seconds of each call. Every function runs once per round, and each round starts with another one.

    An additional call of each function before the first round is not counted.

    Args:
        contenders: The functions by name.
        rounds: Number of rounds.
        device: Device that the functions use.
        clock: Returns seconds; `time.process_time` for the time of the processor, of all threads.
    """
    names = list(contenders)
    for name in names:
        contenders[name]()
    seconds: Seconds = {name: [] for name in names}
    gc.collect()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait(device)
            started = clock()
            contenders[name]()
            wait(device)
            seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: Seconds, name: str, other: str) -> float:
    """Return the median over the rounds of time(name) / time(other). Changes of the machine's speed cancel."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))


def spread(seconds: Seconds, name: str, other: str) -> float:
    """Return half the interquartile range of the ratios of `ratio`."""
    values = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    if len(values) < 4:
        return (max(values) - min(values)) / 2
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def median(seconds: Seconds, name: str) -> float:
    """Return the median time of `name` in seconds."""
    return statistics.median(seconds[name])


class Report:
    """Tables of a benchmark with machine, versions and date; printed at once, written as JSON and Markdown."""

    def __init__(self, title: str, device: torch.device) -> None:
        self.title = title
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else read_processor()
        self.conditions = {
            "device": where,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": date.today().isoformat(),
        }
        self.tables: list[dict] = []
        self.checks: list[dict] = []

    def table(self, title: str, columns: list[str], rows: list[list], note: str = "") -> None:
        """Add a table and print it. JSON stores all digits of its numbers, Markdown shows three."""
        self.tables.append({"title": title, "columns": columns, "rows": rows, "note": note})
        print(_markdown(self.tables[-1]), flush=True)

    def check(self, what: str, value: float, bound: float, *, at_most: bool) -> None:
        """Add a target and print whether it is met."""
        met = value <= bound if at_most else value >= bound
        self.checks.append({"what": what, "value": value, "bound": bound, "at_most": at_most, "met": met})
        sign = "<=" if at_most else ">="
        print(f"{'met   ' if met else 'MISSED'} {what}: {value:.3g} (target {sign} {bound:g})", flush=True)

    def markdown(self) -> str:
        """Return the whole report as Markdown."""
        conditions = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        parts = [f"## {self.title}", conditions, *(_markdown(table) for table in self.tables)]
        if self.checks:
            rows = [
                [
                    entry["what"],
                    entry["value"],
                    f"{'<=' if entry['at_most'] else '>='} {entry['bound']:g}",
                    "yes" if entry["met"] else "**no**",
                ]
                for entry in self.checks
            ]
            parts.append(
                _markdown({"title": "Targets", "columns": ["target", "measured", "bound", "met"], "rows": rows})
            )
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, name: str) -> None:
        """Write ``<name>.json`` and ``<name>.md`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "title": self.title,
            "conditions": self.conditions,
            "tables": self.tables,
            "checks": self.checks,
        }
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{name}.md").write_text(self.markdown())
        print(f"written: {folder / name}.json, {folder / name}.md", flush=True)


def format_cell(value: object) -> str:
    """Return a number with three digits and, from 1,000 on, without decimals; anything else as its text."""
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:,.3g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _markdown(table: Mapping) -> str:
    lines = [f"**{table['title']}**", ""]
    lines += ["| " + " | ".join(table["columns"]) + " |", "|" + " --- |" * len(table["columns"])]
    lines += ["| " + " | ".join(format_cell(value) for value in row) + " |" for row in table["rows"]]
    if table.get("note"):
        lines += ["", table["note"]]
    return "\n".join(lines)


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller cases")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of the reports")
    return parser
