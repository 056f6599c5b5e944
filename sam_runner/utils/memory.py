"""The largest amount of memory that a run has used."""

import contextlib
import sys
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Measure the peak from now on, since a process can train several runs.

    Systems other than Linux do not reset the peak of a process.

    Args:
        device: The device of the run.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def measure_peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the peak in bytes since `reset_peak_memory`, and of what: ``cuda`` or ``process``.

    ``cuda``: tensors on the device, from torch's allocator. ``process``: resident memory of the process with the
    interpreter, the libraries and the data set.

    Args:
        device: The device of the run.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda"
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024, "process"
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"
