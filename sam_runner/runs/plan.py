"""plan.json in the folder of a sweep: its distinct jobs, and the precision that ``precision=auto`` chose.

Several calls of the command, also on several machines, may extend the plan of one sweep. A lock file keeps them from
overwriting each other's entries.
"""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sam_runner.utils.files import read_json, write_json

PLAN = "plan.json"


class PlanEntry(NamedTuple):
    """A job of a sweep.

    Attributes:
        fingerprint: Fingerprint of its settings, which no other job of the sweep has.
        folder: Name of its run folder in the sweep's folder.
        settings: Settings as the user typed them, ``key=value``, without those that have no effect on the job.
        epochs: Epochs of its run.
        cost: Number of epochs times the mean cost of a step in gradients, to compare the durations of jobs.
    """

    fingerprint: str
    folder: str
    settings: tuple[str, ...]
    epochs: int
    cost: float


def read_plan(sweep_folder: Path) -> list[PlanEntry]:
    """Return the jobs of a sweep in the order in which they were planned; empty without a plan."""
    return [
        PlanEntry(entry["fingerprint"], entry["folder"], tuple(entry["settings"]), entry["epochs"], entry["cost"])
        for entry in _read(sweep_folder).get("jobs", [])
    ]


def extend_plan(sweep_folder: Path, add: Callable[[Sequence[PlanEntry]], Sequence[PlanEntry]]) -> None:
    """Add jobs to the plan of a sweep.

    Args:
        sweep_folder: Folder of the sweep, which is created.
        add: Takes the jobs of the plan and returns those to add.
    """
    with _lock(sweep_folder):
        plan, jobs = _read(sweep_folder), read_plan(sweep_folder)
        if new := list(add(jobs)):
            plan["jobs"] = [entry._asdict() for entry in [*jobs, *new]]
            write_json(sweep_folder / PLAN, plan)


def agree_on_precision(sweep_folder: Path, device_type: str, precision: str) -> str:
    """Return the precision of all jobs of a sweep with ``precision=auto``: the one that was given first.

    Args:
        sweep_folder: Folder of the sweep.
        device_type: "cpu" or "cuda". Each has a precision of its own.
        precision: Precision that this process would choose.
    """
    with _lock(sweep_folder):
        plan = _read(sweep_folder)
        agreed: dict[str, str] = plan.setdefault("precision", {})
        if device_type not in agreed:
            agreed[device_type] = precision
            write_json(sweep_folder / PLAN, plan)
    return agreed[device_type]


def _read(sweep_folder: Path) -> dict[str, Any]:
    plan = read_json(sweep_folder / PLAN)
    return plan if isinstance(plan, dict) else {}


@contextmanager
def _lock(sweep_folder: Path) -> Iterator[None]:
    """Hold the lock of the plan inside the body; other processes wait."""
    sweep_folder.mkdir(parents=True, exist_ok=True)
    with (sweep_folder / ".plan.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
