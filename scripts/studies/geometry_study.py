"""Measure curvature over training, and sharpness against generalisation; write docs/results/geometry.csv.

    python scripts/studies/geometry_study.py --folder cifar10=FOLDER --out outputs/geometry

The plan is geometry_study.yaml. Runs of `over_time` get the largest Hessian eigenvalues at every evaluated epoch,
runs of `sweep` the measures of sharpness at the last epoch. The same command continues: finished runs and
measurements are kept in the folder --out, and a run that was stopped goes on from its last checkpoint. The CSV file
has one row for each run and evaluated epoch; it is written anew after every run and every measurement.
`--scale smoke` measures small networks on made-up images. scripts/pages/geometry_page.py makes the page of the results.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sam_runner.analysis.curvature import measure_curvature
from sam_runner.analysis.options import CurvatureOptions, Measurement, SharpnessOptions
from sam_runner.analysis.sharpness import measure_sharpness
from sam_runner.analysis.subject import find_subjects
from sam_runner.api import load_run, train
from sam_runner.utils.errors import RunInterrupt
from sam_runner.utils.files import read_json, write_bytes
from scripts.studies.small_data import write_small_images

PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "geometry.csv"
METRICS = ("train/loss", "train/accuracy", "test/accuracy", "test/nll")


@dataclass(frozen=True)
class Job:
    """One run of the plan.

    Attributes:
        lr: Learning rate.
        rho: Radius of SAM; 0 is SGD.
        seed: Of the run.
        parts: Which of "over_time" and "sweep" it belongs to.
        words: Arguments of sam-train without the run's folder; folders of the user are names in braces.
    """

    lr: float
    rho: float
    seed: int
    parts: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"lr{self.lr:g}-rho{self.rho:g}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command of the run."""
        return " ".join(["sam-train", *self.words])


class Study:
    """The plan, and the rows of what has been measured so far.

    Args:
        content: Of the plan's file.
        out: Folder of the runs.
        table: The CSV file.
        folders: Folders of the user by name.
    """

    def __init__(self, content: Mapping[str, Any], out: Path, table: Path, folders: Mapping[str, str]) -> None:
        self.content, self.out, self.table, self.folders = content, out, table, folders
        self.how = Measurement(**content["measurement"])
        self.curvature = CurvatureOptions(**content["curvature"])
        self.sharpness = SharpnessOptions(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in content["sharpness"].items()}
        )
        self._measured: dict[tuple[str, int], dict[str, Any]] = {}  # by name of the run and step

    def jobs(self) -> list[Job]:
        """The runs, those of `over_time` first."""
        parts: dict[tuple[float, float, int], list[str]] = {}
        for part in ("over_time", "sweep"):
            own = self.content[part]
            for seed, lr, rho in itertools.product(range(own["seeds"]), own["lr"], own["rho"]):
                parts.setdefault((lr, rho, seed), []).append(part)
        jobs = []
        for (lr, rho, seed), names in parts.items():
            method = ["optimizer=sam", f"rho={rho:g}"] if rho else ["optimizer=sgd"]
            words = [*self.content["settings"], *method, f"lr={lr:g}", f"seed={seed}"]
            jobs.append(Job(lr, rho, seed, tuple(names), tuple(words)))
        return jobs

    def run(self) -> None:
        """Train and measure what is missing: the runs over time and their curvature, the sweep, then `whole`."""
        jobs = self.jobs()
        over_time = [job for job in jobs if "over_time" in job.parts]
        for job in over_time:
            self._train(job)
        for job in over_time:
            self._measure_curvature(job)
        for job in [job for job in jobs if "sweep" in job.parts]:
            self._train(job)
            self._measure_sharpness(job)
        for job in over_time:
            self._measure_curvature_of_all_images(job)

    def _train(self, job: Job) -> None:
        words = [word.format(**self.folders) for word in job.words]
        folder = self.out / job.name
        train([*words, "device=cpu", f"run_dir={folder}"])
        self.write()

    def _measure_curvature(self, job: Job) -> None:
        for subject in find_subjects([self.out / job.name], "all"):
            found = measure_curvature(subject, self.how, self.curvature)
            values = found.values
            self._measured.setdefault((job.name, subject.step), {}).update(
                {
                    "subset_loss": values["loss"],
                    "gradient_norm": values["gradient_norm"],
                    "lambda_max": found.lambda_max,
                    "lambda_last": values["eigenvalues"][-1],
                    "ratio": found.ratio,
                    "converged": values["converged"],
                }
            )
            self.write()

    def _measure_curvature_of_all_images(self, job: Job) -> None:
        (subject,) = find_subjects([self.out / job.name], "last")
        found = measure_curvature(subject, replace(self.how, examples=self.content["whole"]), self.curvature)
        own = self._measured.setdefault((job.name, subject.step), {})
        own.update({"whole/loss": found.values["loss"], "whole/lambda_max": found.lambda_max})
        own.update({"whole/ratio": found.ratio, "whole/examples": found.values["num_examples"]})
        self.write()

    def _measure_sharpness(self, job: Job) -> None:
        (subject,) = find_subjects([self.out / job.name], "last")
        found = measure_sharpness(subject, self.how, self.sharpness)
        own = self._measured.setdefault((job.name, subject.step), {})
        own.update({f"sharpness/{name}": value for name, value in found.values.items()} | found.gaps)
        self.write()

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each run and evaluated epoch."""
        for job in self.jobs():
            folder = self.out / job.name
            if not (folder / "metrics.jsonl").is_file():
                continue
            run, environment = load_run(folder), read_json(folder / "environment.json") or {}
            about = {
                "run": job.name, "parts": " ".join(job.parts), "lr": job.lr, "rho": job.rho, "seed": job.seed,
            }  # fmt: skip
            source = {
                "status": run.result.get("status", "not finished"), "commit": environment.get("git_commit"),
                "changed_files": environment.get("git_changes"),
                "torch": environment.get("packages", {}).get("torch"), "machine": environment.get("processor"),
                "examples": self.how.examples, "batchnorm": self.how.batchnorm, "k": self.curvature.k,
                "command": job.command,
            }  # fmt: skip
            evaluated = run.metrics.dropna(subset=["test/accuracy"]) if "test/accuracy" in run.metrics else []
            for row in evaluated.to_dict("records") if len(evaluated) else []:
                measured = self._measured.get((job.name, row["step"]), {})
                yield {
                    **about, "epoch": row["epoch"], "step": row["step"],
                    **{tag: row[tag] for tag in METRICS}, **measured, **source,
                }  # fmt: skip

    def write(self) -> None:
        """Write the CSV file."""
        table = pd.DataFrame(self.rows())
        if not len(table):
            return
        order = [name for name in table if name not in ("status", "command")] + ["status", "command"]
        self.table.parent.mkdir(parents=True, exist_ok=True)
        text = table[order].to_csv(index=False, float_format="%.9g", lineterminator="\n")
        write_bytes(self.table, text.encode())


def read_plan(*, smoke: bool = False) -> dict[str, Any]:
    """Return the content of the plan's file, with the settings of the smoke scale in place of the others."""
    content: dict[str, Any] = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    if smoke:
        words = [*content["settings"], *content["smoke"]["settings"]]
        names = [word.partition("=")[0] for word in content["smoke"]["settings"]]
        dropped = {*names, "model.depth"} if "model" in names else set(names)
        kept = [word for word in content["settings"] if word.partition("=")[0] not in dropped]
        content |= content["smoke"] | {"settings": kept + words[len(content["settings"]) :]}
    return content


def main() -> int:
    """Run the study. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=FOLDER", help="a folder of the study")
    parser.add_argument("--scale", choices=("full", "smoke"), default="full")
    parser.add_argument("--out", type=Path, default=Path("outputs/geometry"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="the CSV file (default: docs/results/geometry.csv)")
    arguments = parser.parse_args()
    smoke, out = arguments.scale == "smoke", arguments.out.resolve()
    folders = {name: str(Path(path).resolve()) for name, _, path in (one.partition("=") for one in arguments.folder)}
    if smoke:
        write_small_images(out / "data" / "cifar10")
        folders = {"cifar10": str(out / "data" / "cifar10")} | folders
    if "cifar10" not in folders:
        parser.error("the folder of the images is not given: add --folder cifar10=FOLDER")
    table = arguments.results or (out / "geometry.csv" if smoke else RESULTS)
    try:
        Study(read_plan(smoke=smoke), out / "runs", table, folders).run()
    except RunInterrupt as stopped:
        print(f"stopped by {stopped}: the same command continues")
        return stopped.code
    print(f"results: {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
