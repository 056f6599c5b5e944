"""Resources of the machine, defaults that depend on them, and process-wide settings of torch and the allocator.

The functions that need torch import it, so that a sweep can count cores without it.
"""

import contextlib
import ctypes
import logging
import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import torch

log = logging.getLogger("sam_runner")
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2  # parameters of glibc's mallopt, see man 3 mallopt
MAX_GPU_WORKERS = 16
BUSY = 1.5  # load average divided by the number of cores from which a machine is busy; one run at a time makes about 1
WAIT_SETTINGS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # read by OpenMP, GNU's, LLVM's
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")  # NVIDIA, its driver in WSL, AMD, NVIDIA Jetson


def count_usable_cores() -> int:
    """Return the number of CPU cores for this process, limited by its affinity and by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_cpu_quota(Path("/sys/fs/cgroup/cpu.max"))
    return cores if quota == math.inf else max(1, min(cores, math.ceil(quota)))


def _read_cpu_quota(path: Path) -> float:
    """Return the number of cores in a cpu.max file of cgroup v2 ("<quota> <period>" or "max <period>").

    Infinite if the file sets no limit, does not exist or does not parse.
    """
    try:
        quota, period = path.read_text().split()
        return math.inf if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        return math.inf


def count_usable_memory() -> float:
    """Return the bytes of memory for this process: those of the machine, limited by a container's limit."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf
    return min(installed, _read_memory_limit(Path("/sys/fs/cgroup/memory.max")))


def _read_memory_limit(path: Path) -> float:
    """Return the bytes in a memory.max file of cgroup v2; infinite as in `_read_cpu_quota`."""
    try:
        limit = path.read_text().strip()
        return math.inf if limit == "max" else float(limit)
    except (OSError, ValueError):
        return math.inf


def choose_num_workers(device: "torch.device", num_processes: int = 1) -> int:
    """Return the number of processes that decode images.

    With a GPU all cores decode, at most `MAX_GPU_WORKERS`. On a CPU a quarter of them does, since training needs the
    others.

    Args:
        device: The device of the run.
        num_processes: Number of training processes on this machine, which share its cores.
    """
    cores = max(1, count_usable_cores() // num_processes)
    return min(cores, MAX_GPU_WORKERS) if device.type == "cuda" else cores // 4


def choose_device(job_number: str | None, num_gpus: int) -> str:
    """Return the device for ``device=auto``: a GPU if there is one; parallel jobs of a sweep take the GPUs in turn.

    Args:
        job_number: Number of the sweep's job, from 0, if other jobs run at the same time; otherwise None.
        num_gpus: Number of GPUs that the process sees.
    """
    if num_gpus == 0:
        return "cpu"
    return "cuda" if job_number is None or num_gpus == 1 else f"cuda:{int(job_number) % num_gpus}"


def count_gpus() -> int:
    """Return the number of GPUs that the process sees; torch is imported only where the system has a GPU driver."""
    if not any(Path(name).exists() for name in GPU_DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def choose_precision(device: "torch.device") -> tuple[str, str]:
    """Return the precision for ``precision=auto`` and the reason: the fastest that keeps float32 weights and accuracy.

    That is bfloat16 if the hardware computes in it; otherwise float16 with a loss scaler on a GPU, float32 on a CPU.
    """
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} computes in bfloat16"
        return "fp16", f"{name} has no bfloat16"
    for test, instructions in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
        if getattr(torch.cpu, test, bool)():
            return "bf16", f"this CPU has {instructions}"
    return "fp32", "this CPU has neither AVX512-BF16 nor AMX"


def configure_torch(device: "torch.device", *, tf32: bool = False, deterministic: bool = False) -> None:
    """Set the process-wide options of torch for a run.

    Args:
        device: The device of the run.
        tf32: Let CUDA round the factors of float32 products to TensorFloat-32 (10 bits of mantissa).
        deterministic: On CUDA use only algorithms whose results are reproducible bit for bit, and do not choose the
            convolution algorithms by timing (cuDNN benchmark).
    """
    import torch

    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic  # input sizes are constant, so each shape is timed once
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        return
    if deterministic:
        log.info("deterministic=true has no effect on a CPU: runs repeat bit for bit there")
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > count_usable_cores():
        torch.set_num_threads(count_usable_cores())
    _report_other_work(torch.get_num_threads())
    _keep_freed_memory()


def start_threads(count: int) -> "ThreadPoolExecutor":
    """Return a pool of threads that may call torch at once, also in a forked process.

    In a fork of a process that has called ``torch.set_num_threads``, the first thread that calls torch renews torch's
    own threads. If two threads do so at once, one of them fails ("Invalid thread pool!"), so a single one goes first.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    pool = ThreadPoolExecutor(count)
    pool.submit(torch.get_num_threads).result()
    return pool


def let_waiting_threads_sleep() -> None:
    """Set ``OMP_WAIT_POLICY=PASSIVE`` on a busy machine, unless the user has set how OpenMP's threads wait.

    By default a thread that waits for another one keeps its core busy. This is faster on an idle machine, and many
    times slower where other work needs the core. The results are the same. It has no effect once torch is imported.
    """
    if not WAIT_SETTINGS & os.environ.keys() and _is_busy(_load_average()):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _load_average() -> float:
    """Return the load average of the last minute, 0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _is_busy(load: float) -> bool:
    return load >= BUSY * (os.cpu_count() or 1)


def _report_other_work(num_threads: int) -> None:
    """Log that a run on a busy machine is slow, and what helps."""
    load = _load_average()
    if num_threads == 1 or not _is_busy(load):
        return
    is_passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    log.info(
        "this machine has other work (load %.0f on %d cores): %s",
        load,
        os.cpu_count() or 1,
        "threads that wait for each other sleep (OMP_WAIT_POLICY=PASSIVE)"
        if is_passive
        else "OMP_WAIT_POLICY=PASSIVE or OMP_NUM_THREADS=1 before the command may train many times faster",
    )


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory in the process, because every step allocates activations of the same sizes.

    By default glibc maps each block of more than 32 MiB separately and returns free memory at the top of the heap to
    the kernel, which fills the pages with zeros when they are used again. This takes a tenth of the time of a small
    network's step. Other allocators and systems are not changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)
