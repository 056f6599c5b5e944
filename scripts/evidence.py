"""Run one of the studies in scripts/evidence/ and write its results to docs/results/<study>.csv.

    python scripts/evidence.py human_noise --folder cifar10=FOLDER --folder cifar10n=FOLDER --jobs 2

A study is a YAML file: settings of every run, blocks (settings that its arms share), arms with their seeds, and for an
arm that has a `search` the values to try. The search runs first, on a seed of its own; the value with the best
validation metric is used in the arm's final runs. The same command continues: runs that are finished here or in the CSV
file (with the same command) are kept, interrupted ones go on from their last checkpoint. Beside the CSV file,
docs/results/<study>/ has the config.yaml and metrics.jsonl of every finished run. `--scale smoke` runs a few steps of
every arm.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import read_status
from sam_runner.utils.files import read_json

STUDIES = Path(__file__).with_name("evidence")
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
COLUMNS = (
    "study", "block", "arm", "role", "value", "seed", "status", "steps", "gradient_evaluations", "images_per_second",
    "commit", "changed_files", "torch", "machine", "date", "command",
)  # fmt: skip
METRICS = (
    "train/loss", "train/accuracy", "train/accuracy_clean", "train/memorised", "train/recovered", "validation/accuracy",
    "validation/nll", "test/accuracy", "test/nll", "test/calibration_error",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        block: Name of the block.
        arm: Name of the arm.
        role: search or final.
        value: Value of the searched setting, "" for an arm without a search.
        seed: Of the run.
        words: Arguments of sam-train, without the run's folder.
    """

    block: str
    arm: str
    role: str
    value: str
    seed: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of its run folder."""
        value = f"-{self.value.replace('=', '')}" if self.value else ""
        return f"{self.block}-{self.arm}{value}-{self.role}-seed{self.seed}"


class Study:
    """A study's file, with folders filled in.

    Args:
        name: Of the file in scripts/evidence, without its suffix.
        folders: Values of the names in braces.
        smoke: Whether to run a few steps only, with one seed.
        out: Folder of the runs.
        results: Folder of the CSV file. Its finished runs are not run again.
    """

    def __init__(self, name: str, folders: Mapping[str, str], smoke: bool, out: Path, results: Path) -> None:
        self.name, self.smoke, self.out, self.results = name, smoke, out / name, results
        self.table = results / f"{name}.csv"
        self.folders = {key: str(Path(path).resolve()) for key, path in folders.items()}
        text = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8")
        self.content = yaml.safe_load(text)
        try:
            self.data = [word.format(**self.folders) for word in self.content["data"]]
        except KeyError as error:
            raise SystemExit(f"error: the folder {error} is not given\n  add --folder NAME=FOLDER") from error
        self.earlier: dict[str, dict[str, Any]] = {}
        if self.table.is_file():
            with self.table.open(encoding="utf-8") as handle:
                self.earlier = {row["command"]: row for row in csv.DictReader(handle) if row["status"] == "finished"}

    def parts(self) -> Iterator[tuple[list[Job], list[tuple[str, str, int]]]]:
        """The search jobs of each part of the plan, and (block, arm, seed) of its final runs, seed by seed."""
        for part in self.content["order"]:
            arms = {name: self.content["arms"][name] for name in part["arms"]}
            searches = [job for name, arm in arms.items() for job in self.search_jobs(part["block"], name, arm)]
            most = 1 if self.smoke else part.get("seeds", max(arm["seeds"] for arm in arms.values()))
            finals = [
                (part["block"], name, seed) for seed in range(most) for name, arm in arms.items() if seed < arm["seeds"]
            ]
            yield searches, finals

    def search_jobs(self, block: str, name: str, arm: Mapping[str, Any]) -> list[Job]:
        """The runs of an arm's search."""
        seed = self.content["search_seed"]
        return [
            self._job(block, name, "search", f"{key}={value}", seed)
            for key, values in arm.get("search", {}).items()
            for value in values
        ]

    def final_job(self, block: str, name: str, seed: int) -> Job:
        """A final run, with the value that the arm's search has chosen."""
        return self._job(block, name, "final", self.choice(block, name), seed)

    def choice(self, block: str, name: str) -> str:
        """The searched value with the best validation metric; "" without a search."""
        jobs = self.search_jobs(block, name, self.content["arms"][name])
        if not jobs:
            return ""
        scores = {job.value: self.row(job)[f"final/{self.content['chosen_by']}"] for job in jobs}
        missing = [value for value, score in scores.items() if score in ("", None)]
        if missing:
            raise SystemExit(
                f"error: the search of {block} {name} lacks {', '.join(missing)}: see the runs' logs, {self.out}/*.log"
            )
        return max(scores, key=lambda value: float(scores[value]))

    def _job(self, block: str, name: str, role: str, value: str, seed: int) -> Job:
        words = [*self.data, *self.content["blocks"][block], *self.content["arms"][name]["words"], f"seed={seed}"]
        words += [value] if value else []
        words += self.content["smoke"] if self.smoke else []
        last = {word.partition("=")[0]: word for word in words}  # a later word replaces an earlier one
        return Job(block, name, role, value, seed, tuple(last.values()))

    def folder(self, job: Job) -> Path:
        """The run folder of a job."""
        return self.out / job.name

    def command(self, job: Job) -> str:
        """The command of a run, with the names of folders in place of their paths."""
        originals = {filled: word for word, filled in zip(self.content["data"], self.data, strict=True)}
        return " ".join(["sam-train", *(originals.get(word, word) for word in job.words)])

    def finished(self, job: Job) -> bool:
        """Whether a run is finished, here or in the CSV file."""
        return self.command(job) in self.earlier or read_finished_result(self.folder(job)) is not None

    def row(self, job: Job) -> dict[str, Any]:
        """One line of the CSV file."""
        if self.command(job) in self.earlier:
            return self.earlier[self.command(job)]
        folder = self.folder(job)
        result = read_finished_result(folder) or {}
        environment, status = read_json(folder / "environment.json") or {}, read_status(folder)
        steps = result.get("step", "")
        passes = 2 if "optimizer=sam" in job.words else 1
        row = {
            "study": self.name, "block": job.block, "arm": job.arm, "role": job.role, "value": job.value,
            "seed": job.seed, "status": status.get("status", "not run"), "steps": steps,
            "gradient_evaluations": steps * passes if steps else "",
            "images_per_second": round(result["images_per_second"], 1) if result else "",
            "commit": environment.get("git_commit"), "changed_files": environment.get("git_changes"),
            "torch": environment.get("packages", {}).get("torch"), "machine": environment.get("processor"),
            "date": status.get("time", ""), "command": self.command(job),
        }  # fmt: skip
        for kind in ("final", "best"):
            row |= {f"{kind}/{tag}": result.get(kind, {}).get(tag, "") for tag in METRICS}
        return row | {"best_epoch": result.get("best_epoch", "")}

    def keep(self, job: Job) -> None:
        """Copy the settings and metrics of a finished run beside the CSV file."""
        source, kept = self.folder(job), self.results / self.name
        kept.mkdir(parents=True, exist_ok=True)
        settings = (source / "config.yaml").read_text(encoding="utf-8")
        for name, path in self.folders.items():
            settings = settings.replace(path, f"{{{name}}}")
        (kept / f"{job.name}.yaml").write_text(settings.replace(str(self.out), "{out}"), encoding="utf-8")
        shutil.copyfile(source / "metrics.jsonl", kept / f"{job.name}.jsonl")

    def write(self) -> None:
        """Write the CSV file: a line for each run of the plan that can be named now."""
        jobs: dict[str, Job] = {}
        for searches, finals in self.parts():
            jobs |= {job.name: job for job in searches}
            for block, arm, seed in finals:
                if all(self.finished(job) for job in self.search_jobs(block, arm, self.content["arms"][arm])):
                    job = self.final_job(block, arm, seed)
                    jobs[job.name] = job
        rows = [row for row in map(self.row, jobs.values()) if row["status"] != "not run"]
        self.results.mkdir(parents=True, exist_ok=True)
        columns = [*COLUMNS, *(f"{kind}/{tag}" for kind in ("final", "best") for tag in METRICS), "best_epoch"]
        temporary = self.results / f".{self.name}.csv"
        with temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.table)


def run(study: Study, job: Job) -> int:
    """Train one run in a process of its own, with one thread; returns its exit code."""
    folder = study.folder(job)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("sam-train")), *job.words, "device=cpu", f"run_dir={folder}"]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode == 0:
        study.keep(job)
    return done.returncode


def main() -> int:
    """Run a study. Returns 1 where a run has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=FOLDER", help="a folder of the study")
    parser.add_argument("--scale", choices=("full", "smoke"), default="full")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the CSV files (default: docs/results)")
    arguments = parser.parse_args()
    smoke = arguments.scale == "smoke"
    folders = dict(entry.split("=", 1) for entry in arguments.folder)
    out = arguments.out.resolve()
    results = arguments.results or (out / arguments.study / "results" if smoke else RESULTS)
    study = Study(arguments.study, folders, smoke, out, results)
    failed = 0

    def together(jobs: Sequence[Job]) -> None:
        """Run some jobs, several at once; write the results after each."""
        nonlocal failed
        with ThreadPoolExecutor(arguments.jobs) as pool:
            futures = {pool.submit(run, study, job): job for job in jobs if not study.finished(job)}
            for number, future in enumerate(as_completed(futures), 1):
                code = future.result()
                failed += code != 0
                accuracy = study.row(futures[future])["final/test/accuracy"]
                print(
                    f"{time.strftime('%H:%M:%S')} {futures[future].name}: code {code}, test accuracy {accuracy} "
                    f"({number} of {len(futures)} of this part)",
                    flush=True,
                )
                study.write()

    for searches, finals in study.parts():
        print(f"{study.name}: {len(searches)} runs of searches, {len(finals)} final runs", flush=True)
        together(searches)
        together([study.final_job(*final) for final in finals])
    study.write()
    print(f"results: {study.table}; {failed} runs failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
