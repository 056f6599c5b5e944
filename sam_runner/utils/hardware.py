"""What the machine has, and the settings of torch and of the allocator that make use of it."""

import contextlib
import ctypes
import math
import os
import platform
from pathlib import Path

import torch

M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2  # of glibc's mallopt, see man 3 mallopt


def count_usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (containers)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    return cores if quota == math.inf else max(1, min(cores, math.ceil(quota)))


def _quota(path: Path) -> float:
    """Cores of a control group (cgroup v2: "<microseconds> <period>" or "max <period>"); infinite where none is set."""
    try:
        share, period = path.read_text().split()
        return math.inf if share == "max" else float(share) / float(period)
    except (OSError, ValueError):
        return math.inf


def choose_num_workers(device: torch.device, processes: int = 1) -> int:
    """Processes that decode images: all cores beside a GPU; on a CPU a quarter, since the training is there too.

    Args:
        device: Of the run.
        processes: Those on this machine that train together and share its cores.
    """
    cores = count_usable_cores() // processes
    return min(cores, 16) if device.type == "cuda" else cores // 4


def choose_device(cell: str | None, num_gpus: int) -> str:
    """What ``device=auto`` is: a GPU where there is one; the cells of a sweep that run at once take the GPUs in turn.

    Args:
        cell: Number of the cell, from 0, where others run beside it; else None.
        num_gpus: That the process sees.
    """
    if num_gpus == 0:
        return "cpu"
    return "cuda" if cell is None or num_gpus == 1 else f"cuda:{int(cell) % num_gpus}"


def choose_num_parallel_jobs(num_gpus: int, num_cores: int) -> int:
    """How many cells of a sweep run at once on one machine: one a GPU, and without any one a core."""
    return num_gpus or num_cores


def choose_precision(device: torch.device) -> tuple[str, str]:
    """What ``precision=auto`` is on a device, and why: the fastest that keeps float32 weights and loses no accuracy.

    bfloat16 where it is computed in hardware; on an older GPU float16 with a loss scaler; on an older CPU float32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} computes in bfloat16"
        return "fp16", f"{name} has no bfloat16"
    for test, instructions in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
        if getattr(torch.cpu, test, bool)():
            return "bf16", f"this CPU has {instructions}"
    return "fp32", "this CPU has neither AVX512-BF16 nor AMX"


def configure_torch(device: torch.device, *, tf32: bool = False, deterministic: bool = False) -> None:
    """Settings of the process that a run is made with.

    Args:
        device: Of the run.
        tf32: Whether float32 products on CUDA may round their factors to ten bits; otherwise float32 is float32.
        deterministic: On CUDA use only algorithms that give the same bits each time, and do not time the others.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic  # input sizes are constant: choose the convolutions by timing
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        return
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > count_usable_cores():
        torch.set_num_threads(count_usable_cores())
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: the same activations are asked for again in every step.

    Otherwise a block of more than 32 MiB is a mapping of its own each time, and free memory on top goes back to the
    kernel, which fills the pages with zeros anew: a tenth of a small network's step (docs/performance.md). Other
    allocators and systems are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)
