"""Resources of the machine and the defaults that depend on them, with simulated CPUs and GPUs."""

import os
import subprocess
import sys

import pytest
import torch

from sam_runner.utils import hardware


@pytest.mark.parametrize(
    ("content", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", float("inf")), ("", float("inf")), ("400000 100000", 4)],
)
def test_read_cpu_quota_of_a_control_group(tmp_path, content, cores):
    (tmp_path / "cpu.max").write_text(content)
    assert hardware._read_cpu_quota(tmp_path / "cpu.max") == cores
    assert hardware._read_cpu_quota(tmp_path / "nowhere") == float("inf")


@pytest.mark.parametrize(("quota", "expected"), [(1.5, 2), (0.2, 1), (1e6, 8), (float("inf"), 8)])
def test_usable_cores_are_the_smaller_of_affinity_and_read_cpu_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(hardware, "_read_cpu_quota", lambda _: quota)
    assert hardware.count_usable_cores() == expected


@pytest.mark.parametrize(("content", "limit"), [("1048576\n", 1 << 20), ("max\n", float("inf")), ("", float("inf"))])
def test_usable_memory_is_that_of_the_machine_or_the_limit_of_a_control_group(tmp_path, monkeypatch, content, limit):
    (tmp_path / "memory.max").write_text(content)
    assert hardware._read_memory_limit(tmp_path / "memory.max") == limit
    assert hardware._read_memory_limit(tmp_path / "nowhere") == float("inf")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.get)
    monkeypatch.setattr(hardware, "_read_memory_limit", lambda path: limit)
    assert hardware.count_usable_memory() == min(limit, 4096 * 1000)


@pytest.mark.parametrize(
    ("supported", "precision", "reason"),
    [
        ({"_is_amx_tile_supported", "_is_avx512_bf16_supported"}, "bf16", "AMX"),
        ({"_is_avx512_bf16_supported"}, "bf16", "AVX512-BF16"),
        (set(), "fp32", "neither"),
    ],
)
def test_automatic_precision_of_a_cpu(monkeypatch, supported, precision, reason):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in supported, raising=False)
    chosen, why = hardware.choose_precision(torch.device("cpu"))
    assert chosen == precision
    assert reason in why


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16"), (False, "fp16")])
def test_automatic_precision_of_a_gpu(monkeypatch, bf16, precision):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    chosen, why = hardware.choose_precision(torch.device("cuda"))
    assert chosen == precision
    assert "Some GPU" in why


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_configure_torch_sets_the_options_of_cuda(tf32, deterministic, monkeypatch):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(hardware, "_keep_freed_memory", lambda: None)
    try:
        hardware.configure_torch(torch.device("cpu"), tf32=tf32, deterministic=deterministic)
        assert [backend.allow_tf32 for backend in backends] == [tf32, tf32]
        assert torch.backends.cudnn.benchmark is not deterministic
    finally:
        hardware.configure_torch(torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "cores", "expected"), [("cuda", 64, 16), ("cuda", 6, 6), ("cpu", 2, 0), ("cpu", 32, 8)]
)
def test_number_of_decoding_workers(monkeypatch, device, cores, expected):
    monkeypatch.setattr(hardware, "count_usable_cores", lambda: cores)
    assert hardware.choose_num_workers(torch.device(device)) == expected


@pytest.mark.slow
def test_freed_memory_is_kept():
    """Count page faults of repeated allocations: with kept memory there are hardly any after the first."""
    program = (
        "import resource, sys, torch\n"
        "from sam_runner.utils import hardware\n"
        "if sys.argv[1] == 'keep': hardware._keep_freed_memory()\n"
        "make = lambda: torch.ones(40 << 20, dtype=torch.uint8)\n"
        "for _ in range(5): make()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(50): make()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", program, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "leave")
    }
    if hardware.platform.libc_ver()[0] != "glibc":
        assert faults["keep"] >= 0
    else:
        assert faults["keep"] < 0.1 * faults["leave"]


@pytest.mark.parametrize(
    ("threads", "load", "policy", "message"),
    [
        (2, 6.0, "", "OMP_WAIT_POLICY=PASSIVE or OMP_NUM_THREADS=1 before the command"),
        (4, 12.0, "active", "OMP_WAIT_POLICY=PASSIVE or OMP_NUM_THREADS=1 before the command"),
        (2, 100.0, "PASSIVE", "threads that wait for each other sleep"),
        (2, 5.9, "", None),
        (1, 100.0, "", None),
    ],
)
def test_a_run_on_a_busy_machine_logs_what_helps(threads, load, policy, message, monkeypatch, caplog):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 4)
    with caplog.at_level("INFO"):
        hardware._report_other_work(threads)
    assert message in caplog.text if message else caplog.text == ""


@pytest.mark.parametrize(
    ("load", "typed", "policy"),
    [
        (6.0, {}, "PASSIVE"),
        (5.9, {}, None),
        (6.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (6.0, {"GOMP_SPINCOUNT": "1000"}, None),
    ],
)
def test_waiting_threads_sleep_on_a_busy_machine(load, typed, policy, monkeypatch):
    monkeypatch.setattr(hardware.os, "environ", dict(typed))
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 4)
    hardware.let_waiting_threads_sleep()
    assert hardware.os.environ.get("OMP_WAIT_POLICY") == policy


FORKS = """
import os
import threading
import torch
from sam_runner.utils.hardware import start_threads

torch.set_num_threads(4)
levels = torch.zeros(100_000, dtype=torch.uint8)
torch.bincount(levels)
for _ in range(60):
    if not os.fork():
        together = threading.Barrier(4)
        with start_threads(4) as pool:
            list(pool.map(lambda _: together.wait() < 4 and torch.bincount(levels), range(4)))
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_threads_of_a_fork_may_call_torch_at_once():
    """In a plain ThreadPoolExecutor one of 5 such forks fails: torch renews its own threads in the first call."""
    answer = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-500:]
