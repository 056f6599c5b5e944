"""Measure what the guards for other people's networks cost in a SAM step, in CPU time of one thread.

    OMP_NUM_THREADS=1 python scripts/benchmarks/network_guards.py [--quick]

A guard is a check or a copy that an ordinary network does not need. Each guard is timed alone: the least time of many
calls, times its calls in a step. A step with and one without guards differ by less than the noise of a busy machine.
"""

import sys
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.models.resnet_cifar import ResNetCifar
from sam_runner.models.small_cnn import SmallCNN
from sam_runner.sam.batch import Batch
from sam_runner.sam.network.gradient_memory import own_gradients
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.seeding import RngState
from scripts.benchmarks.measuring import Report, make_parser

CASES = {
    "small CNN, 8 px, batch 16": (lambda: SmallCNN(10, 1), (16, 1, 8, 8)),
    "small CNN, 8 px, batch 128": (lambda: SmallCNN(10, 1), (128, 1, 8, 8)),
    "ResNet-20, 16 px, batch 128": (lambda: ResNetCifar(10, 3), (128, 3, 16, 16)),
}
BOUND = 1.0  # percent of a step


def least_seconds(call: Callable[[], object], number: int, repeat: int) -> float:
    """Return the least mean CPU time of a call among `repeat` rounds of `number` calls."""
    return min(timeit.repeat(call, number=number, repeat=repeat, timer=time.thread_time)) / number


def enter(make: Callable[[], AbstractContextManager[object]]) -> Callable[[], None]:
    """Return a function that enters and leaves a context."""

    def call() -> None:
        with make():
            pass

    return call


def list_guards(step: SamStep) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return the guards of a step: name, number of calls in a SAM step, and the call."""
    objective, state = step.objective, step.objective.statistics
    rng = RngState.capture(objective.device, objective.generators)

    def restore_torch() -> None:
        torch.get_rng_state()
        torch.set_rng_state(rng.cpu)

    def restore_all() -> None:
        RngState.capture(objective.device, objective.generators).restore(objective.device, objective.generators)

    return {
        "gradients that share memory": (2, lambda: own_gradients(objective.params)),
        "gradients of other parameters": (1, enter(objective.keep_other_gradients)),
        "changed lists of parameters": (1, step.update_parameters),
        "buffers, and layers computed again": (2, enter(lambda: state.recompute_from(state.copy_start()))),
        "random state of Python, NumPy and torch": (1, restore_all),
        "torch's part of it, subtracted": (-1, restore_torch),
    }


def measure(model: nn.Module, shape: tuple[int, ...], rounds: int) -> tuple[float, dict[str, float]]:
    """Return the least ms of a SAM step, and the microseconds of each guard in a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
    step = SamStep(Objective(model, F.cross_entropy), optimizer)
    batch = Batch(torch.randn(shape), torch.arange(shape[0]) % 10)
    whole = least_seconds(lambda: step(batch, 0.05), 3, rounds)
    loss = F.cross_entropy(model(batch.inputs), batch.targets)
    loss.backward()  # the gradients that the guards look at
    guards = {name: 1e6 * count * least_seconds(call, 100, rounds) for name, (count, call) in list_guards(step).items()}
    return 1e3 * whole, guards


def main() -> int:
    """Measure, print, write."""
    options = make_parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report, measured = Report("Guards", torch.device("cpu")), {}
    for name, (build, shape) in CASES.items():
        measured[name] = measure(build(), shape, 10 if options.quick else 40)
    guards = [dict(guards) for _, guards in measured.values()]
    rows = [[guard, *(found[guard] for found in guards)] for guard in guards[0]]
    totals = [sum(found.values()) for found in guards]
    shares = [total / 10 / milliseconds for total, (milliseconds, _) in zip(totals, measured.values(), strict=True)]
    rows += [["all guards", *totals], ["SAM step, ms", *(found for found, _ in measured.values())]]
    rows.append(["guards, % of the step", *shares])
    report.table("Guards of a SAM step, microseconds", ["guard", *measured], rows)
    for name, share in zip(measured, shares, strict=True):
        report.check(f"guards, {name}, % of a step", share, BOUND, at_most=True)
    report.write(options.out, "guards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
