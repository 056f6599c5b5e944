"""Measure how the time of a SAM step changes with ranks: data-parallel processes of one thread, against one process.

    python scripts/benchmarks/ranks.py [--quick] [--out outputs/bench]

The size of the whole batch does not depend on the number of ranks (strong scaling). If each rank has its own eps, a
step sends the gradients once, as SGD does; with a common eps it sends them twice. The model of the cost, 2 (W - 1) 4 P
bytes between W ranks each time, is compared with the bytes on the loopback interface (Linux).
"""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.multiprocessing as mp
from torch import distributed
from torch.nn import functional as F

from sam_runner.distributed.context import DistributedContext
from sam_runner.sam.methods import Sam
from sam_runner.sam.objective import Batch, Objective
from sam_runner.sam.step import SamStep
from scripts.benchmarks.measuring import Report, make_parser, median, take_turns
from scripts.benchmarks.step import MODELS, RHO, SGD

CASES = [("small CNN", 256, (1, 28, 28)), ("MLP 10 M", 256, (784,))]
CPU = torch.device("cpu")


def steps(name: str, batch_size: int, shape: tuple[int, ...], *, parallel: bool) -> dict:
    """Return functions that take a step of SGD, and of SAM with one eps per rank or a common one."""
    contenders = {}
    for kind in ("SGD", "SAM, own eps", "SAM, common eps") if parallel else ("SGD", "SAM, own eps"):
        torch.manual_seed(0)
        model = MODELS[name]()
        optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)
        objective = Objective(model, F.cross_entropy)
        if parallel:
            context = DistributedContext(distributed.get_rank(), distributed.get_world_size())
            objective = Objective(model, F.cross_entropy, context=context)
        step = SamStep(objective, optimizer, Sam(sync_perturbation=kind == "SAM, common eps"))
        batch = Batch(torch.randn(batch_size, *shape), torch.arange(batch_size) % 10)
        rho = 0.0 if kind == "SGD" else RHO
        contenders[kind] = lambda step=step, batch=batch, rho=rho: step(batch, rho)
    return contenders


def loopback() -> int:
    """Return the number of bytes that the loopback interface has sent."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def sent(step: Callable[[], object], repeats: int = 5) -> float:
    """Return the number of bytes that the ranks send in a step."""
    step()
    distributed.barrier()
    before = loopback()
    for _ in range(repeats):
        step()
    distributed.barrier()
    return (loopback() - before) / repeats


def measure_on_rank(rounds: int, case: tuple, count: int) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of each kind of step on this rank, and the bytes that it sends."""
    name, batch_size, shape = case
    torch.manual_seed(1)
    contenders = steps(name, batch_size // count, shape, parallel=count > 1)
    seconds = take_turns(contenders, rounds, CPU)
    return {kind: (1e3 * median(seconds, kind), sent(contenders[kind]) if count > 1 else 0.0) for kind in contenders}


def rank(number: int, count: int, threads: int, port: int, rounds: int, case: tuple, queue) -> None:
    """Measure in this process; rank 0 puts the result into the queue."""
    torch.set_num_threads(threads)
    if count > 1:
        distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=count)
    found = measure_on_rank(rounds, case, count)
    if number == 0:
        queue.put(found)
    if count > 1:
        distributed.destroy_process_group()


def run(count: int, threads: int, rounds: int, case: tuple) -> dict[str, tuple[float, float]]:
    """Measure with `count` processes, and return the result of rank 0."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    processes = mp.spawn(rank, (count, threads, port, rounds, case, queue), nprocs=count, join=False)
    found = queue.get()
    processes.join()
    return found


def main() -> int:
    """Measure, print the tables and write the report."""
    options = make_parser(__doc__.splitlines()[0]).parse_args()
    report, rounds = Report("Ranks", CPU), 9 if options.quick else 21
    rows: list[list] = []
    messages: list[list] = []
    for case in CASES:
        weights = sum(param.numel() for param in MODELS[case[0]]().parameters())
        base = run(1, 1, rounds, case)["SAM, own eps"][0]
        for label, count, threads in (("1 process, 1 thread", 1, 1), ("1 process, 2 threads", 1, 2),
                                      ("2 ranks, 1 thread each", 2, 1)):  # fmt: skip
            found = run(count, threads, rounds, case)
            own, common = found["SAM, own eps"][0], found.get("SAM, common eps", (float("nan"), 0))[0]
            rows.append([
                f"{case[0]}, batch {case[1]}", label, found["SGD"][0], own, "-" if count == 1 else common,
                own / found["SGD"][0], base / own,
            ])  # fmt: skip
            print(rows[-1], flush=True)
            model = 2 * (count - 1) * 4 * weights / 1e6
            for kind in found if count > 1 else ():
                times = 2 if kind == "SAM, common eps" else 1
                messages.append([
                    f"{case[0]}, {weights:,} weights", count, kind, times * model, found[kind][1] / 1e6,
                    found[kind][1] / 1e6 / (times * model),
                ])  # fmt: skip
                print(messages[-1], flush=True)
    columns = [
        "case",
        "how",
        "SGD, ms",
        "SAM own eps, ms",
        "SAM common eps, ms",
        "SAM/SGD",
        "SAM's speed / speed of a separate baseline run",
    ]
    note = "The baseline run has 1 process and 1 thread, as the first row of each case: their ratio shows the noise."
    report.table("A step of the whole batch on one machine of two cores", columns, rows, note)
    columns = ["case", "ranks", "step", "model, MB", "measured, MB", "measured / model"]
    report.table("Bytes between the ranks in a step", columns, messages)
    report.write(options.out, "ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
