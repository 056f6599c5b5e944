"""What a quantity is, and how one measurement of it is made in a process of its own."""

import contextlib
import gc
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Work = Callable[[], object]
Start = Callable[[Path, int], Work]  # takes the folder with the files and the size; its own time does not count


@dataclass(frozen=True)
class Quantity:
    """A number that grows, and the work that grows with it.

    Attributes:
        unit: What is counted, as in "files".
        sizes: Numbers that are measured, ascending.
        quick: Smaller numbers, for a check of the script.
        parts: What is measured, by name, in this order; each part in a process of its own.
        prepare: Makes the files of a size in an empty folder; None: there are none.
        times: How often each part is measured; the measurement with the least CPU seconds counts.
    """

    unit: str
    sizes: Sequence[int]
    quick: Sequence[int]
    parts: Mapping[str, Start]
    prepare: Callable[[Path, int], object] | None = None
    times: int = 1


def measure(start: Start, folder: Path, size: int) -> dict[str, float]:
    """Do the work in this process; return wall seconds, CPU seconds, and by how many MiB its peak memory has grown.

    CPU seconds and memory are also those of the processes that the work has started and waited for.
    """
    work = start(folder, size)
    gc.freeze()  # garbage collections during the work do not look at what only `start` has made
    with contextlib.suppress(OSError):  # Linux: the peak is measured from now on
        Path("/proc/self/clear_refs").write_text("5")
    memory, cpu, wall = _peak_mib(), _cpu_seconds(), time.perf_counter()
    work()
    return {
        "wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu, "mib": _peak_mib() - memory,
    }  # fmt: skip


def _cpu_seconds() -> float:
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def _peak_mib() -> float:
    """Return the largest memory so far of this process and of the largest one that it has started (Linux: KiB)."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_maxrss for part in parts) / 1024
