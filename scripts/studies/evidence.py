"""Run studies of scripts/studies/evidence/ and write their results to docs/results/<study>.csv.

    python scripts/studies/evidence.py human_noise --folder cifar10=FOLDER --folder cifar10n=FOLDER --jobs 2

A study is a YAML file: settings of every run, blocks (settings that the arms of a block share), arms with their numbers
of seeds, and for an arm that has a `search` the values to try. The search runs first, on a seed of its own; the value
with the best validation metric is used in the arm's final runs. The same command continues: runs that are finished
here, or in the CSV file with the same command, are kept; interrupted runs go on from their last checkpoint, failed ones
are tried again. At SIGTERM and Ctrl-C the runs save first. Rows of another plan or scale stay in the file and count
for nothing. Beside the CSV file, docs/results/<study>/ has the config.yaml and the evaluations of every finished run.
`--scale smoke` runs a few steps of every arm on small made-up images. A study with `plain_fit: true` evaluates its
final runs on their training images without augmentation too, if their run folders are here.
scripts/pages/results_page.py makes docs/results.md from the CSV files.
"""

import argparse
import csv
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam_runner.runs.result import read_finished_result
from sam_runner.runs.status import read_status
from sam_runner.utils.errors import INTERRUPTED, PREEMPTED
from sam_runner.utils.files import read_json
from scripts.studies.small_data import write_small_data
from scripts.studies.workers import NOT_STARTED, get_answer, open_pool, run_commands

STUDIES = Path(__file__).with_name("evidence")
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
COLUMNS = (
    "study", "block", "arm", "role", "value", "seed", "status", "steps", "gradient_evaluations", "training_seconds",
    "images_per_second", "commit", "changed_files", "torch", "machine", "date", "command",
)  # fmt: skip
METRICS = (
    "train/loss", "train/accuracy", "train/accuracy_clean", "train/memorised", "train/recovered", "validation/accuracy",
    "validation/nll", "test/accuracy", "test/nll", "test/calibration_error",
)  # fmt: skip
FAILED = ("failed", "died")  # statuses of runs that ended without a result; others that are not finished go on
PLAIN_FIT = "plain/train/accuracy"  # accuracy on the training images without augmentation, by the last weights
METRIC_COLUMNS = (*(f"{kind}/{tag}" for kind in ("final", "best") for tag in METRICS), PLAIN_FIT)


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        block: Name of the block.
        arm: Name of the arm.
        role: search or final.
        value: The searched setting, e.g. "rho=0.1"; "" for an arm without a search.
        seed: Of the run.
        words: Arguments of sam-train without the run's folder; folders of the user are names in braces.
    """

    block: str
    arm: str
    role: str
    value: str
    seed: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run, also of the files that are kept of it."""
        return name_run(self.block, self.arm, self.value, self.role, self.seed)

    @property
    def folder_name(self) -> str:
        """Name of the run folder, which belongs to one command: a run of another plan or scale has another folder."""
        return f"{self.name}-{hashlib.sha256(self.command.encode()).hexdigest()[:6]}"

    @property
    def command(self) -> str:
        """The command of the run."""
        return " ".join(["sam-train", *self.words])


def name_machine(environment: Mapping[str, Any]) -> str | None:
    """Return what a run was computed on: the GPU, or the processor."""
    device = environment.get("device")
    return environment.get("processor") if device in (None, "cpu") else str(device)


def name_run(block: str, arm: str, value: str, role: str, seed: int) -> str:
    """Return the name of a run."""
    searched = f"-{value.replace('=', '')}" if value else ""
    return f"{block}-{arm}{searched}-{role}-seed{seed}"


@dataclass(frozen=True)
class Part:
    """A part of a study's plan: the searches of its arms, then (arm, seed) of the final runs, seed by seed."""

    block: str
    searches: list[Job]
    finals: list[tuple[str, int]]


class Study:
    """The plan of a study, and the rows of the runs that are finished so far.

    Args:
        name: Of the file in scripts/studies/evidence, without its suffix.
        smoke: Whether to run a few steps only, with one seed.
        results: Folder of the CSV file.
    """

    def __init__(self, name: str, *, smoke: bool = False, results: Path = RESULTS) -> None:
        self.name, self.smoke = name, smoke
        self.content: dict[str, Any] = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
        self.table = results / f"{name}.csv"
        self.kept = results / name
        self.rows: dict[str, dict[str, Any]] = {}
        if self.table.is_file():
            with self.table.open(encoding="utf-8") as handle:
                self.rows = {row["command"]: dict.fromkeys(METRIC_COLUMNS, "") | row for row in csv.DictReader(handle)}

    def parts(self) -> Iterator[Part]:
        """The parts of the plan in the order in which they are run."""
        for part in self.content["order"]:
            block, arms = part["block"], part["arms"]
            searches = [job for arm in arms for job in self.search_jobs(block, arm)]
            seeds = {arm: min(self.content["arms"][arm]["seeds"], part.get("seeds", sys.maxsize)) for arm in arms}
            most = 1 if self.smoke else max(seeds.values())
            yield Part(block, searches, [(arm, seed) for seed in range(most) for arm in arms if seed < seeds[arm]])

    def list_planned(self) -> list[tuple[str, str, str, int]]:
        """(block, arm, value, seed) of every run of the plan; the value of a final run is "" until it is chosen."""
        runs = [(job.block, job.arm, job.value, job.seed) for part in self.parts() for job in part.searches]
        runs += [(part.block, arm, "", seed) for part in self.parts() for arm, seed in part.finals]
        return list(dict.fromkeys(runs))

    def planned_commands(self) -> list[str]:
        """The commands of the plan's runs in its order, searches first; without final runs whose value is open."""
        parts = list(self.parts())
        commands = [job.command for part in parts for job in part.searches]
        for part in parts:
            finals = [(arm, seed) for arm, seed in part.finals if self.is_chosen(part.block, arm)]
            commands += [self.final_job(part.block, arm, seed).command for arm, seed in finals]
        return list(dict.fromkeys(commands))

    def planned_rows(self) -> list[dict[str, Any]]:
        """The rows of the plan's runs; rows of another plan or scale are left out."""
        return [self.rows[command] for command in self.planned_commands() if command in self.rows]

    def count_runs(self) -> dict[str, int]:
        """How many runs the plan has, and how many are finished, have failed or died, or are open.

        The last three add up to the first.
        """
        planned, statuses = len(self.list_planned()), [row["status"] for row in self.planned_rows()]
        finished, failed = statuses.count("finished"), sum(status in FAILED for status in statuses)
        return {"planned": planned, "finished": finished, "failed": failed, "open": planned - finished - failed}

    def open_arms(self) -> list[str]:
        """The arms of the plan that are not finished with the number of open runs, as "worst sam-m32 (3 runs)"."""
        found: dict[str, int] = {}
        for job in dict.fromkeys(job for part in self.parts() for job in part.searches):  # parts can share searches
            found[f"{job.block} {job.arm}"] = found.get(f"{job.block} {job.arm}", 0) + (not self.is_finished(job))
        for block, arm, seed in dict.fromkeys((part.block, *final) for part in self.parts() for final in part.finals):
            is_open = not (self.is_chosen(block, arm) and self.is_finished(self.final_job(block, arm, seed)))
            found[f"{block} {arm}"] = found.get(f"{block} {arm}", 0) + is_open
        return [f"{name} ({count} run{'s' if count > 1 else ''})" for name, count in found.items() if count]

    def count_changed(self) -> int:
        """How many runs were made with uncommitted changes of the program."""
        return sum(str(row["changed_files"]) == "True" for row in self.planned_rows())

    def words(self) -> list[str]:
        """The arguments of all runs, with names of folders in braces."""
        parts = (self.content["data"], *self.content["blocks"].values())
        return [word for words in parts for word in words]

    def search_jobs(self, block: str, arm: str) -> list[Job]:
        """The runs of an arm's search; none for an arm without a search."""
        searches = self.content["arms"][arm].get("search", {})
        most = 2 if self.smoke else None  # values
        words = [f"{key}={value}" for key, values in searches.items() for value in values[:most]]
        return [self._job(block, arm, "search", word, self.content["search_seed"]) for word in words]

    def final_job(self, block: str, arm: str, seed: int) -> Job:
        """A final run, with the value that the arm's search has chosen."""
        return self._job(block, arm, "final", self.choice(block, arm), seed)

    def is_chosen(self, block: str, arm: str) -> bool:
        """Whether all runs of an arm's search are finished, and at least one has not diverged."""
        jobs = self.search_jobs(block, arm)
        return all(map(self.is_finished, jobs)) and not (jobs and all(math.isnan(self._score(job)) for job in jobs))

    def _score(self, job: Job) -> float:
        """The metric that chooses, of a finished run; NaN where it is missing."""
        return float(self.rows[job.command][f"final/{self.content['chosen_by']}"] or "nan")

    def choice(self, block: str, arm: str) -> str:
        """The searched value with the best validation metric at the last epoch; "" without a search."""
        scores = {job.value: self._score(job) for job in self.search_jobs(block, arm)}
        known = {value: score for value, score in scores.items() if not math.isnan(score)}  # NaN: the run diverged
        return max(known, key=known.__getitem__, default="")

    def is_finished(self, job: Job) -> bool:
        """Whether a run is finished."""
        return self.rows.get(job.command, {}).get("status") == "finished"

    def _job(self, block: str, arm: str, role: str, value: str, seed: int) -> Job:
        content = self.content
        own = content["arms"][arm]
        words = [
            *content["data"],
            *content["blocks"][block],
            *own["words"],
            *own.get("words_by_block", {}).get(block, []),
        ]
        words.append(f"seed={seed}")
        words += [value] if value else []
        words += content["smoke"] if self.smoke else []
        last = {word.partition("=")[0]: word for word in words}  # a later word replaces an earlier one
        return Job(block, arm, role, value, seed, tuple(last.values()))

    def add(self, job: Job, folder: Path, folders: Mapping[str, str], code: int = 0) -> None:
        """Add the run in `folder` to the CSV file, and copy its settings and metrics beside the file.

        Args:
            job: The run.
            folder: Its run folder.
            folders: Folders of the user by name; the copy of the settings has the names.
            code: Exit code of the run.
        """
        status, environment = read_status(folder), read_json(folder / "environment.json") or {}
        result = read_finished_result(folder) or {} if code == 0 else {}
        state = "finished" if result else str(status.get("status", "failed"))
        if state in ("running", "finished") and not result:  # the process has ended without saying so
            state = "died"
        row = {
            "study": self.name, "block": job.block, "arm": job.arm, "role": job.role, "value": job.value,
            "seed": job.seed, "status": state, "steps": result.get("step", ""),
            "gradient_evaluations": result.get("gradient_evaluations", ""),
            "training_seconds": round(result["training_seconds"], 1) if "training_seconds" in result else "",
            "images_per_second": round(result["images_per_second"], 1) if result else "",
            "commit": environment.get("git_commit"), "changed_files": environment.get("git_changes"),
            "torch": environment.get("packages", {}).get("torch"), "machine": name_machine(environment),
            "date": status.get("time", ""), "command": job.command,
        }  # fmt: skip
        for kind in ("final", "best"):
            row |= {f"{kind}/{tag}": result.get(kind, {}).get(tag, "") for tag in METRICS}
        self.rows[job.command] = row | {PLAIN_FIT: "", "best_epoch": result.get("best_epoch", "")}
        self._write()
        if result:
            self.kept.mkdir(parents=True, exist_ok=True)
            settings = (folder / "config.yaml").read_text(encoding="utf-8").replace(str(folder), "RUN")
            for name, path in folders.items():
                settings = settings.replace(path, f"{{{name}}}")
            (self.kept / f"{job.name}.yaml").write_text(settings, encoding="utf-8")
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            evaluations = "".join(line for line in lines if '"test/accuracy"' in line)
            (self.kept / f"{job.name}.jsonl").write_text(evaluations, encoding="utf-8")

    def add_plain_fit(self, job: Job, printed: str) -> None:
        """Add what sam-eval printed for the training images of a finished run."""
        values = dict(line.split() for line in printed.splitlines() if line.startswith("train/"))
        self.rows[job.command][PLAIN_FIT] = values["train/accuracy"]
        self._write()

    def _write(self) -> None:
        """Write the CSV file: first the searches, then the final runs, in the plan's order."""
        order = self.planned_commands()
        others = [command for command in self.rows if command not in order]  # of another plan: nothing is lost
        self.table.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.table.with_name(f".{self.table.name}")
        with temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, [*COLUMNS, *METRIC_COLUMNS, "best_epoch"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows[command] for command in order + others if command in self.rows)
        temporary.replace(self.table)


@dataclass(frozen=True)
class Runner:
    """Trains the runs of a study in the worker processes of a pool.

    Attributes:
        study: The study that gets the results.
        out: Folder of the run folders.
        folders: Folders of the user by name.
        pool: The worker processes.
        words: Arguments of every run that depend on the machine: they are not part of a row's command. Arms do without
            the words in their list `without`.
    """

    study: Study
    out: Path
    folders: Mapping[str, str]
    pool: ProcessPoolExecutor
    words: Sequence[str] = ()

    def command(self, job: Job) -> list[str]:
        """The command of a run on this machine."""
        refused = self.study.content["arms"][job.arm].get("without", [])
        words = [word.format(**self.folders) for word in job.words]
        words += [word for word in self.words if word not in refused]
        return ["sam-train", *words, f"run_dir={self.out / job.folder_name}"]

    def run_together(self, jobs: Sequence[Job]) -> int:
        """Run jobs; write the results after each. Returns how many failed."""
        failed, jobs = 0, [job for job in jobs if not self.study.is_finished(job)]
        self.out.mkdir(parents=True, exist_ok=True)
        futures = {self.pool.submit(run_commands, [self.command(job)], number): job for number, job in enumerate(jobs)}
        for number, future in enumerate(as_completed(futures), 1):
            job, (code, printed) = futures[future], get_answer(future)
            if printed == NOT_STARTED:
                continue
            with (self.out / f"{job.folder_name}.log").open("a", encoding="utf-8") as log:
                log.write(printed)
            failed += code not in (0, PREEMPTED, INTERRUPTED)
            self.study.add(job, self.out / job.folder_name, self.places(), code)
            accuracy = self.study.rows.get(job.command, {}).get("final/test/accuracy")
            print(
                f"{time.strftime('%H:%M:%S')} {job.name}: code {code}, test accuracy {accuracy} "
                f"({number} of {len(futures)} at once)",
                flush=True,
            )
        return failed

    def places(self) -> dict[str, str]:
        """Return the folders by name, those of the machine's words (``data.cache=FOLDER``) by their key."""
        words = (word.partition("=") for word in self.words)
        return {**self.folders, **{key: value for key, _, value in words if value.startswith("/")}}

    def run_part(self, part: Part) -> int:
        """Run the searches of a part and the final runs that need none, then the others. Returns how many runs failed.

        The final runs of an arm whose search is not complete are left out.
        """
        at_once = [*part.searches, *self.chosen_finals(part)]
        failed = self.run_together(at_once)
        for arm in dict.fromkeys(arm for arm, _ in part.finals if not self.study.is_chosen(part.block, arm)):
            print(f"{part.block} {arm}: the search is not complete; logs: {self.out}/*.log")
        failed += self.run_together([job for job in self.chosen_finals(part) if job not in at_once])
        return failed + (self.evaluate_train(part) if self.study.content.get("plain_fit") else 0)

    def evaluate_train(self, part: Part) -> int:
        """Evaluate final runs on their training images without augmentation. Returns how many evaluations failed."""
        finished = [job for job in self.chosen_finals(part) if self.study.is_finished(job)]
        folders = {job: self.out / job.folder_name for job in finished if not self.study.rows[job.command][PLAIN_FIT]}
        here = {
            job: ["sam-eval", str(folder), "--split", "train"] for job, folder in folders.items() if folder.is_dir()
        }
        if len(here) < len(folders):
            print(
                f"{part.block}: run folders that are not here: {len(folders) - len(here)}; their plain fit stays open"
            )
        numbered = enumerate(here.items())
        futures = {self.pool.submit(run_commands, [command], number): job for number, (job, command) in numbered}
        failed = 0
        for future in as_completed(futures):
            job, (code, printed) = futures[future], get_answer(future)
            if code == 0:
                self.study.add_plain_fit(job, printed)
            elif code not in (PREEMPTED, INTERRUPTED):
                failed += 1
                print(f"{job.name}: no plain fit: {printed.strip()}", flush=True)
        return failed

    def chosen_finals(self, part: Part) -> list[Job]:
        """The final runs of the arms of a part whose searched value is known."""
        chosen = [(arm, seed) for arm, seed in part.finals if self.study.is_chosen(part.block, arm)]
        return [self.study.final_job(part.block, arm, seed) for arm, seed in chosen]


def run_study(name: str, arguments: argparse.Namespace, folders: Mapping[str, str], pool: ProcessPoolExecutor) -> int:
    """Run a study in the pool. Returns how many runs failed."""
    smoke, out = arguments.scale == "smoke", arguments.out.resolve() / name
    study = Study(name, smoke=smoke, results=arguments.results or (out / "results" if smoke else RESULTS))
    if smoke:
        folders = write_small_data(out / "data") | dict(folders)
    runner, failed = Runner(study, out, folders, pool, [f"device={arguments.device}", *arguments.word]), 0
    for part in study.parts():
        counts = f"{len(part.searches)} runs of searches, {len(part.finals)} final runs"
        print(f"{name}, {part.block}: {counts}", flush=True)
        failed += runner.run_part(part)
    counts = ", ".join(f"{n} {status}" for status, n in study.count_runs().items())
    print(f"results: {study.table}; {counts}; {failed} failed now", flush=True)
    return failed


def parse_arguments() -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the arguments, and the user's folders by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="+", choices=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=FOLDER", help="a folder of the study")
    parser.add_argument("--scale", choices=("full", "smoke"), default="full")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1); on a CPU each has one thread")
    parser.add_argument("--device", default="cpu", help="device of the runs: cpu (default), cuda")
    parser.add_argument(
        "--word", action="append", default=[], metavar="KEY=VALUE", help="setting of this machine, as compile=capture"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and stop after this time")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the CSV files (default: docs/results)")
    arguments = parser.parse_args()
    folders = {
        name: str(Path(path).resolve()) for name, _, path in (entry.partition("=") for entry in arguments.folder)
    }
    if arguments.scale == "full":
        for name in arguments.study:
            try:
                " ".join(Study(name).words()).format(**folders)
            except KeyError as error:
                parser.error(f"{name}: the folder {error} is not given\n  add --folder NAME=FOLDER")
    return arguments, folders


def main() -> int:
    """Run studies, all in one pool of processes. Returns 1 if a run has failed."""
    arguments, folders = parse_arguments()
    deadline = time.monotonic() + 60 * arguments.minutes
    on_gpu = arguments.device != "cpu"
    if not on_gpu:
        os.environ["OMP_NUM_THREADS"] = "1"  # the workers inherit it
    with (
        open_pool(arguments.jobs, deadline, share_gpu=on_gpu and arguments.jobs > 1) as pool,
        ThreadPoolExecutor(len(arguments.study)) as threads,
    ):
        failed = sum(threads.map(lambda name: run_study(name, arguments, folders, pool), arguments.study))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
