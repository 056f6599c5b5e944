"""A table of the paper from its rows' commands, and what came out beside the paper's numbers.

    python scripts/reproduce.py --table 4 --scale full data.root=FOLDER      # the paper's recipes
    python scripts/reproduce.py --table 4 --scale cpu data.root=FOLDER       # shrunken: an hour on two cores
    python scripts/reproduce.py --table all --scale smoke                    # three steps of every row

The same command again goes on where it was stopped. --rows REGEX takes some rows, --print only shows the commands.
Words after the options win over all others (device=cuda, epochs=50, ...). reproduce.yaml says what a scale does.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.core.global_hydra import GlobalHydra
from sam_runner.commands.after import report

from sam_runner.commands import evaluate as evaluate_command
from sam_runner.commands import train as train_command
from sam_runner.paper.rows import Row, tables
from sam_runner.utils.errors import InputError

GONE = threading.Event()  # the process that this one works for has ended
STOPPED = threading.Event()  # Ctrl-C has ended a run of this process
SCALES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Cell:
    """One run: its name, what is typed for it, where it goes, and the run that gives it its labels."""

    name: str
    words: list[str]
    table: Path
    teacher: "Cell | None" = None

    @property
    def folder(self) -> Path:
        return self.table / self.name

    @property
    def labels(self) -> Path:
        return self.folder / "labels.npy"

    @property
    def commands(self) -> list[list[str]]:
        """What has to be called, in this order."""
        mine = ["sam-train", *self.words, f"run_dir={self.folder}"]
        if self.teacher is None:
            return [mine]
        relabel = ["sam-eval", f"run_dir={self.teacher.folder}", f"relabel={self.teacher.labels}"]
        return [*self.teacher.commands, relabel, mine]


def joined(*texts: Iterable[str]) -> list[str]:
    """Words of several sources; of a key the last counts."""
    last: dict[str, str] = {}
    for word in (word for text in texts for word in text):
        last[word.partition("=")[0]] = word
    return list(last.values())


def scaled(row: Row, table: str, scale: str) -> list[str]:
    """What a scale puts beside a row's words."""
    if scale == "full":
        return []
    found = SCALES[scale]
    words = (found if scale == "smoke" else found["tables"][table])["words"].split()
    if scale == "smoke":
        if "optimizer.m=" not in row.words:
            words += ["optimizer.m=16"]
        name = row.words.split()[0].partition("=")[2]
        words += next(text for pattern, text in found["networks"].items() if re.fullmatch(pattern, name)).split()
    return [*words, f"paper={row.name}"]


def cells(table: str, scale: str, seed: int, given: list[str], out: Path) -> Iterator[Cell]:
    """The runs of a table's rows with one seed."""
    some = SCALES["cpu"]["tables"][table].get("rows", "") if scale == "cpu" else ""
    for row in (row for row in tables()[table] if re.search(some, row.name)):
        for optimizer in row.optimizers:
            words = [
                *row.words.split(),
                *(word for word in row.typed.split() if optimizer == "sam" or "rho=" not in word),
            ]
            words = joined(words, [f"optimizer={optimizer}", f"seed={seed}"], scaled(row, table, scale), given)
            if row.folder and scale == "full":
                words = [f"{word}/{row.folder}" if word.startswith("data.root=") else word for word in words]
            teacher = None
            if row.labels:
                everyone = cells("table4", scale, seed, given, out)
                teacher = next(cell for cell in everyone if cell.name == f"{row.labels}-{optimizer}-seed{seed}")
                words = joined(words, [f"noise.file={teacher.labels}"])
            yield Cell(f"{row.name}-{optimizer}-seed{seed}", words, out / table, teacher)


def run(cell: Cell, number: int) -> tuple[int, str]:
    """Do it in this process, which a pool keeps: exit code, and what was printed last."""
    if STOPPED.is_set():  # it lay in the pool's queue already
        return 130, "not begun"
    line = ""
    os.environ["SAM_RUNNER_JOB"] = str(number)  # which of several GPUs
    for command in cell.commands:
        if command[0] == "sam-eval" and (cell.folder / "config.yaml").is_file():
            continue  # what goes on has its labels
        GlobalHydra.instance().clear()
        sys.argv = command
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = (train_command.main if command[0] == "sam-train" else evaluate_command.main)()
        if GONE.is_set():
            os._exit(code)
        if code:
            if code == 130:
                STOPPED.set()
            return code, printed.getvalue()
        line = printed.getvalue().strip().rpartition("\n")[2]
    return 0, line


def leave_with(parent: int) -> None:
    """Let this process of a pool save and end where the one that started it is gone: it would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        GONE.set()
        os.kill(os.getpid(), signal.SIGTERM)  # a run saves; without one it ends the process

    threading.Thread(target=watch, daemon=True).start()


def run_all(wanted: list[Cell], options: argparse.Namespace) -> list[str]:
    """Names of those that failed."""
    import torch  # seconds, which a mistake is not answered after

    from sam_runner.utils.hardware import choose_num_parallel_jobs, count_usable_cores

    gpus = torch.cuda.device_count() if options.scale == "full" else 0
    jobs = options.jobs or choose_num_parallel_jobs(gpus, count_usable_cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_usable_cores() // jobs)))
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, leave_with, (os.getpid(),)) as pool:
        futures = {pool.submit(run, cell, number): cell for number, cell in enumerate(wanted)}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                cell = futures[future]
                try:
                    code, told = future.result()
                except Exception as error:  # a process was killed, or something that no command foresees
                    code, told = 1, f"{type(error).__name__}: {error}"
                print(f"[{number}/{len(wanted)}] {cell.name}: {told if code else told.partition('  ')[2]}", flush=True)
                failed += [cell.name] if code else []
        except KeyboardInterrupt:  # the runs have it too, and save
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def parsed() -> tuple[argparse.Namespace, list[str]]:
    """Options, and the words that win over all others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help=f"all, or one of {', '.join(tables())}; 4 is table4")
    parser.add_argument("--scale", required=True, choices=["smoke", "cpu", "full"])
    parser.add_argument("--rows", default="", help="a regular expression that a run's name has to have")
    parser.add_argument("--seeds", type=int, help="runs of each row, seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one a GPU, without any one a core)")
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduce"), help="a folder; SCALE/TABLE is added")
    parser.add_argument("--print", action="store_true", help="print the commands and run nothing")
    options, given = parser.parse_known_args()
    if any("=" not in word or word.startswith("-") for word in given):
        parser.error(f"{' '.join(given)}: further words are key=value")
    try:
        re.compile(options.rows)
    except re.error as error:
        parser.error(f"--rows {options.rows} is no regular expression: {error}")
    own = {word.partition("=")[0] for word in given} & {"paper", "seed", "optimizer", "run_dir", "noise.file"}
    if own:
        parser.error(f"{', '.join(sorted(own))}: each run has its own; there are --seeds, --rows and --out")
    options.table = f"table{options.table}" if options.table[:1].isdigit() else options.table
    offered = [*(SCALES["cpu"]["tables"] if options.scale == "cpu" else tables())]
    if options.table not in ["all", *offered]:
        parser.error(f"--table {options.table} --scale {options.scale} is not offered; there are {', '.join(offered)}")
    options.tables = offered if options.table == "all" else [options.table]
    if any(number is not None and number < 1 for number in (options.jobs, options.seeds)):
        parser.error("--jobs and --seeds are 1 or more")
    return options, given


def without_images(wanted: list[Cell]) -> list[str]:
    """Folders that are not there, of tables whose rows have a set each."""
    apart = {name for name, rows in tables().items() if any(row.folder for row in rows)}
    words = [dict(word.split("=", 1) for word in cell.words) for cell in wanted if cell.table.name in apart]
    roots = {chosen.get("data.root", "data.root (not given)") for chosen in words}
    return sorted(root for root in roots if not Path(root).expanduser().is_dir())


def main() -> int:
    """Run what is missing, then print the tables."""
    options, given = parsed()
    out = options.out.resolve() / options.scale
    seeds = range(options.seeds or SCALES[options.scale]["seeds"])
    wanted = [
        cell
        for table in options.tables
        for seed in seeds
        for cell in cells(table, options.scale, seed, given, out)
        if re.search(options.rows, cell.name)
    ]
    taught = {cell.teacher.folder for cell in wanted if cell.teacher}  # the pupil's commands have its teacher's
    wanted = [cell for cell in wanted if cell.folder not in taught]
    if not wanted:
        print(f"error: --rows {options.rows}: no run has that in its name; --print shows them", file=sys.stderr)
        return 2
    missing = [] if options.print or options.scale != "full" else without_images(wanted)
    if missing:
        print(f"error: each set has a folder of its own; missing: {', '.join(missing)}", file=sys.stderr)
        print(
            "  put them there, take others with --rows, or name the folder above them: data.root=...", file=sys.stderr
        )
        return 2
    if options.print:
        print("\n".join(shlex.join(command) for cell in wanted for command in cell.commands))
        return 0
    failed = run_all(wanted, options)
    for table in options.tables:
        if (out / table).is_dir():
            try:
                report([str(out / table), f"paper={table}"])
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(wanted)} runs, all finished")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
