"""Train the runs of a table of the paper, and print the paper's numbers beside the results.

    python scripts/studies/reproduce.py --table 4 --scale full data.root=FOLDER      # the paper's recipes
    python scripts/studies/reproduce.py --table 4 --scale cpu data.root=FOLDER       # smaller: an hour on two cores
    python scripts/studies/reproduce.py --table 4 --scale gpu data.root=FOLDER --jobs 8 --minutes 9
    python scripts/studies/reproduce.py --table all --scale smoke                    # three steps of every row

The same command again skips finished runs and continues the others. --rows REGEX chooses rows, --print shows the
commands. Overrides after the options win over all others (device=cuda, epochs=50, ...); dry_run=true prints the plan of
each run (--seeds 1: of each row) and trains nothing, also without the data. reproduce.yaml has the settings
of each scale. Runs that share a GPU compute at the same time under CUDA's MPS where it is installed, and take turns
otherwise.
"""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import yaml

from sam_runner.commands.report import report
from sam_runner.paper.rows import Row, load_tables
from sam_runner.utils.errors import InputError
from scripts.studies.workers import get_answer, open_pool, run_commands

SCALES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Job:
    """One run of a row.

    Attributes:
        name: Name of the run and of its folder.
        overrides: Overrides of the run.
        table: Folder of the table's runs.
        teacher: The run whose network gives the training labels; None for the labels of the data.
    """

    name: str
    overrides: list[str]
    table: Path
    teacher: "Job | None" = None

    @property
    def folder(self) -> Path:
        return self.table / self.name

    @property
    def labels(self) -> Path:
        """File of the labels that this run's network gives."""
        return self.folder / "labels.npy"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of the job in order, beginning with those of the teacher.

        Labels that the run has already used are not made again.
        """
        own = ["sam-train", *self.overrides, f"run_dir={self.folder}"]
        if self.teacher is None:
            return [own]
        relabel = ["sam-eval", str(self.teacher.folder), "--relabel", str(self.teacher.labels)]
        started = (self.folder / "config.yaml").is_file()
        return [*self.teacher.commands, *([] if started else [relabel]), own]


def merge_overrides(*sources: Iterable[str]) -> list[str]:
    """Return the overrides of several sources; the last one of each key wins."""
    return list({word.partition("=")[0]: word for source in sources for word in source}.values())


def scale_overrides(row: Row, table: str, scale: str) -> list[str]:
    """Return the overrides that a scale adds to a row."""
    if scale == "full":
        return []
    settings = SCALES[scale]
    words = (settings if scale == "smoke" else settings["tables"][table])["overrides"].split()
    if scale == "smoke":
        if "optimizer.m=" not in row.overrides:
            words += ["optimizer.m=16"]
        experiment = row.overrides.split()[0].partition("=")[2]
        words += next(
            text for pattern, text in settings["networks"].items() if re.fullmatch(pattern, experiment)
        ).split()
    return [*words, f"paper={row.name}"]


def make_jobs(table: str, scale: str, seed: int, overrides: list[str], out: Path) -> Iterator[Job]:
    """Yield the runs of a table's rows with one seed."""
    pattern = SCALES[scale].get("tables", {}).get(table, {}).get("rows", "")
    for row in (row for row in load_tables()[table] if re.search(pattern, row.name)):
        for optimizer in row.optimizers:
            words = merge_overrides(
                row.command(optimizer), [f"seed={seed}"], scale_overrides(row, table, scale), overrides
            )
            if row.subfolder and scale == "full":
                words = [f"{word}/{row.subfolder}" if word.startswith("data.root=") else word for word in words]
            teacher = None
            if row.teacher:
                name = f"{row.teacher}-{optimizer}-seed{seed}"
                teacher = next(job for job in make_jobs("table4", scale, seed, overrides, out) if job.name == name)
                words = merge_overrides(words, [f"noise.file={teacher.labels}"])
            yield Job(f"{row.name}-{optimizer}-seed{seed}", words, out / table, teacher)


def run_all(jobs: list[Job], options: argparse.Namespace) -> dict[str, int]:
    """Run jobs in worker processes; return the exit codes of the jobs that did not finish, by name."""
    deadline = time.monotonic() + 60 * options.minutes
    import torch  # imported here: it takes seconds, and invalid options are answered first

    from sam_runner.utils.hardware import count_usable_cores

    num_gpus = torch.cuda.device_count() if options.scale in ("full", "gpu") else 0
    num_workers = options.jobs or num_gpus or count_usable_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_usable_cores() // num_workers)))
    codes = {}
    with open_pool(num_workers, deadline, share_gpu=0 < num_gpus < num_workers) as pool:
        futures = {pool.submit(run_commands, job.commands, number): job for number, job in enumerate(jobs)}
        for number, future in enumerate(as_completed(futures), 1):
            name, (code, output) = futures[future].name, get_answer(future)
            shown = output if code or options.is_plan else output.strip().rpartition("\n")[2].partition("  ")[2]
            print(f"[{number}/{len(jobs)}] {name}: {shown}", flush=True)
            codes |= {name: code} if code else {}
    return codes


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the user's overrides."""
    tables = load_tables()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help=f"all, or one of {', '.join(tables)}; 4 is table4")
    parser.add_argument("--scale", required=True, choices=["smoke", "cpu", "gpu", "full"])
    parser.add_argument("--rows", default="", help="regular expression that is searched in the names of runs")
    parser.add_argument("--seeds", type=int, help="number of runs of each row, with the seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: one for each GPU, or for each core)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and stop after this time")
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduce"), help="folder; SCALE/TABLE is added")
    parser.add_argument("--print", action="store_true", help="print the commands and run nothing")
    options, overrides = parser.parse_known_args()
    if any("=" not in word or word.startswith("-") for word in overrides):
        parser.error(f"{' '.join(overrides)}: further words are key=value")
    try:
        re.compile(options.rows)
    except re.error as error:
        parser.error(f"--rows {options.rows} is not a regular expression: {error}")
    reserved = {word.partition("=")[0] for word in overrides} & {"paper", "seed", "optimizer", "run_dir", "noise.file"}
    if reserved:
        parser.error(f"{', '.join(sorted(reserved))}: each run sets its own; use --seeds, --rows and --out")
    options.table = f"table{options.table}" if options.table[:1].isdigit() else options.table
    offered = list(SCALES[options.scale].get("tables", tables))
    if options.table not in ["all", *offered]:
        parser.error(f"--table {options.table} is not offered at --scale {options.scale}; use {', '.join(offered)}")
    options.is_plan = "dry_run=true" in overrides
    options.tables = offered if options.table == "all" else [options.table]
    if any(number is not None and number < 1 for number in (options.jobs, options.seeds)):
        parser.error("--jobs and --seeds are 1 or more")
    return options, overrides


def missing_image_folders(jobs: list[Job], scale: str) -> list[str]:
    """Return the image folders that do not exist: of the scale gpu, and of tables with one folder per row."""
    tables = {name for name, rows in load_tables().items() if scale == "gpu" or any(row.subfolder for row in rows)}
    settings = [dict(word.split("=", 1) for word in job.overrides) for job in jobs if job.table.name in tables]
    roots = {words.get("data.root", "data.root (not given)") for words in settings}
    return sorted(root for root in roots if not Path(root).expanduser().is_dir())


def main() -> int:
    """Run the jobs that have not finished, then print the tables. Returns the exit code."""
    options, overrides = parse_arguments()
    out = options.out.resolve() / options.scale
    seeds = range(options.seeds or SCALES[options.scale]["seeds"])
    jobs = [
        job
        for table in options.tables
        for seed in seeds
        for job in make_jobs(table, options.scale, seed, overrides, out)
        if re.search(options.rows, job.name)
    ]
    teachers = {job.teacher.folder for job in jobs if job.teacher}  # trained by the jobs of their pupils
    jobs = [job for job in jobs if job.folder not in teachers]
    if not jobs:
        print(f"error: --rows {options.rows} matches no run\n  --print shows their names", file=sys.stderr)
        return 2
    needs_images = options.scale in ("full", "gpu") and not options.print and not options.is_plan
    missing = missing_image_folders(jobs, options.scale) if needs_images else []
    if missing:
        print(
            f"error: missing image folders: {', '.join(missing)}\n"
            "  create them, choose other rows with --rows, or give another data.root=FOLDER",
            file=sys.stderr,
        )
        return 2
    if options.print:
        print("\n".join(shlex.join(command) for job in jobs for command in job.commands))
        return 0
    codes = run_all(jobs, options)
    for table in options.tables:
        if (out / table).is_dir():
            try:
                report([str(out / table), "--paper", table])
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
    failed = [name for name, code in codes.items() if code not in (75, 130)]
    stopped = [name for name, code in codes.items() if code in (75, 130)]
    if failed:
        print(f"failed: {', '.join(failed)}")
    if stopped:
        print(f"not finished: {', '.join(stopped)}\n  the same command continues")
    if not codes:
        print(f"{len(jobs)} runs, all {'planned' if options.is_plan else 'finished'}")
    return 1 if codes else 0


if __name__ == "__main__":
    sys.exit(main())
