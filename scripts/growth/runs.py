"""Quantities of runs on disk: runs in a report, jobs of a sweep, checkpoints that are kept, rows of metrics.jsonl."""

import contextlib
import functools
import io
import json
import os
from pathlib import Path

import torch
import yaml

from sam_runner.config.experiment import ExperimentConfig, load_experiment
from sam_runner.config.hydra.compose import compose_experiment
from sam_runner.reports.output.files import write_sweep_report
from sam_runner.reports.results import read_curve
from sam_runner.runs.logging.csv_table import CsvLogger
from sam_runner.sweeps.jobs import plan_jobs
from sam_runner.sweeps.outcomes import record_refusal
from sam_runner.sweeps.progress import SweepProgress, read_state
from sam_runner.training.checkpoints import CheckpointFolder
from scripts.growth.quantity import Quantity, Work

NUM_SEEDS, NUM_EPOCHS = 10, 10
REFUSED = 10  # of so many jobs one is refused
METHODS = ("sgd", "sam")


@functools.cache
def base_settings(method: str) -> ExperimentConfig:
    """Return the settings of a method that all runs share."""
    return compose_experiment([f"optimizer={method}", f"epochs={NUM_EPOCHS}"])


def settings(number: int) -> tuple[list[str], str, dict]:
    """Return the words, the method and the settings of run `number`: its seed, then its method, then its lr."""
    lr, rest = divmod(number, len(METHODS) * NUM_SEEDS)
    method, seed = METHODS[rest // NUM_SEEDS], rest % NUM_SEEDS
    rate = round(0.001 * (1 + lr), 4)
    values = {**base_settings(method).to_dict(), "lr": rate, "seed": seed}
    return [f"optimizer={method}", f"lr={rate}", f"seed={seed}"], method, values


def make_runs(folder: Path, count: int) -> None:
    """Write the files of finished runs: a grid of methods, learning rates and seeds."""
    marks = {"lr": 0.123456, "seed": 987654}
    texts = {}
    for method in METHODS:
        marked = load_experiment({**base_settings(method).to_dict(), **marks}).to_dict()
        texts[method] = yaml.safe_dump(marked, sort_keys=False)
    for number in range(count):
        words, method, values = settings(number)
        text = texts[method].replace(str(marks["lr"]), str(values["lr"]))
        accuracy = 0.5 + number % 97 / 1000
        final = {"train/loss": 0.1, "train/accuracy": 0.99, "test/accuracy": accuracy, "test/nll": 1 - accuracy}
        steps = 100 * (1 + METHODS.index(method))
        rows = [{"step": 10 * epoch, "epoch": epoch, **final} for epoch in range(1, NUM_EPOCHS + 1)]
        files = {
            "config.yaml": text.replace(str(marks["seed"]), str(values["seed"])),
            "run.log": "",
            "metrics.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
            "status.json": json.dumps({"status": "finished", "time": "2026-01-01T00:00:00+00:00"}),
            "environment.json": json.dumps({"command": ["sam-train", "-m", *words[:2]]}),
            "result.json": json.dumps({
                "status": "finished", "final": final, "gradient_evaluations": steps, "training_seconds": 1.0,
            }),
        }  # fmt: skip
        inside = folder / "sweep" / ",".join(words)
        inside.mkdir(parents=True)
        for name, content in files.items():
            (inside / name).write_text(content)


def report_runs(folder: Path, count: int) -> Work:  # noqa: ARG001
    """Read the runs, print their table and write the report, as a sweep does at its end."""

    def write() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            write_sweep_report(folder / "sweep")

    return write


def compose_jobs(count: int) -> list[tuple[list[str], ExperimentConfig]]:
    """Return what was typed for each job, and its settings."""
    composed = []
    for number in range(count):
        words, _, values = settings(number)
        composed.append((words, load_experiment(values).with_absolute_paths()))
    return composed


def plan_sweep(folder: Path, count: int) -> Work:
    """Plan the jobs of a sweep whose folder has the runs of its first half."""
    composed = compose_jobs(count)
    plan_jobs(folder / "sweep", composed[: count // 2])
    for job in plan_jobs(folder / "sweep", composed[: count // 2])[0]:
        job.folder.mkdir()
    return lambda: plan_jobs(folder / "sweep", composed)


def read_status(folder: Path, count: int) -> Work:
    """Read how far a sweep is of which nothing has begun and some jobs were refused, as sam-status does."""
    plan_jobs(folder / "sweep", compose_jobs(count))
    for number in range(count // REFUSED):
        record_refusal(folder / "sweep", [f"rho=-{number + 1}"], "rho is negative")
    progress = SweepProgress(folder / "sweep")

    def read() -> None:
        progress.update()
        progress.line()

    return read


def save_with_others(folder: Path, count: int) -> Work:
    """Save ten checkpoints beside those of `count` epochs, which are all kept."""
    state = {"model": {"weight": torch.zeros(10)}, "optimizer": {}}
    checkpoints = CheckpointFolder(folder / "checkpoints", every_epochs=1)
    checkpoints.save(1, state, epoch=1)
    first = folder / "checkpoints" / "step-00000001"
    for number in range(2, count + 1):
        for suffix in (".pt", ".json"):
            os.link(first.with_suffix(suffix), folder / "checkpoints" / f"step-{number:08d}{suffix}")

    def save() -> None:
        for number in range(count + 1, count + 11):
            checkpoints.save(number, state, epoch=number)

    return save


def make_rows(folder: Path, count: int) -> None:
    """Write the metrics of a long run: a row each ten steps, and an evaluation every hundred rows."""
    with (folder / "metrics.jsonl").open("w") as handle:
        for number in range(count):
            row = {"step": 10 * number, "epoch": 1 + number // 100, "train/loss": 0.1, "train/accuracy": 0.9}
            row |= {"test/accuracy": 0.8, "test/nll": 0.5} if number % 100 == 99 else {}
            handle.write(json.dumps(row) + "\n")
    (folder / "status.json").write_text(json.dumps({"status": "running", "host": "elsewhere"}))


RUNS = Quantity("runs in a report", (100, 1000, 10_000), (10, 40), {"report written": report_runs}, make_runs)
JOBS = Quantity(
    "jobs of a sweep",
    (100, 1000, 4000, 16_000),
    (10, 40),
    {"plan, half of the jobs have a folder": plan_sweep, "sam-status, nothing begun": read_status},
    times=5,
)
CHECKPOINTS = Quantity("checkpoints kept", (10, 100, 1000), (10, 40), {"ten more saved": save_with_others})
ROWS = Quantity(
    "rows of metrics.jsonl",
    (10_000, 100_000, 1_000_000),
    (100, 1000),
    {
        "curve of a report": lambda folder, _: lambda: read_curve(folder, "test/accuracy"),
        "sam-status": lambda folder, _: lambda: read_state(folder, 10**6),
        "metrics.csv at the end": lambda folder, _: CsvLogger(folder).close,
    },
    make_rows,
)
