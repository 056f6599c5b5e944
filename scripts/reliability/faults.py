"""Fault injection: a run that is killed or stopped continues with the bits of an uninterrupted run.

    python scripts/reliability/faults.py [--long] [--parts kills stops damage mutants sweeps] [--out outputs/faults]

Each trial starts ``sam-train`` in a new process (a fork of this one, which has imported torch), kills it, runs the same
command again until it finishes, and compares weights, optimizer, metrics.jsonl and TensorBoard's steps with those of an
uninterrupted run. --long makes 200 kills at random moments and 50 inside saves. The four mutants break the program on
purpose: the trials must detect each of them, otherwise they prove nothing.

A trial of the part sweeps kills a sweep of 24 jobs, 15 of them distinct, and calls it again from two processes at once.
Both must end with code 0, and every run must have the metrics of an undisturbed sweep. --long makes 20 such trials.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sam_runner.commands import train as train_command
from sam_runner.data.loader import ImageLoader
from sam_runner.runs.logging.jsonl import JsonlLogger
from sam_runner.training import checkpoints, loop, state
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.utils import files
from sam_runner.utils.manifest import check_manifest
from scripts.benchmarks.measuring import Report

torch.set_num_threads(1)
TIMEOUT = 30.0  # seconds that any process may take
PARTS = ("kills", "stops", "damage", "mutants", "sweeps")
SWEEP = ["optimizer=sgd,sam", "rho=0.02,0.05,0.1,0.2", "seed=0,1,2", "epochs=2", "device=cpu", "log_every=5",
         "checkpoint.every_steps=5", "sweep_name=s"]  # fmt: skip
NUM_DISTINCT_JOBS = 15  # SGD ignores rho: 3 seeds of SGD, 4 x 3 of SAM
SWEEP_TIMEOUT = 900.0  # seconds
Patch = Callable[[], None]
Kind = tuple[str, str, int]  # optimizer, precision, number of data workers


def write_images(folder: Path) -> Path:
    """Write 96 training and 16 test images of two classes; return the folder."""
    draws = random.Random(0)
    for part, count in (("train", 48), ("test", 8)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.frombytes("RGB", (10, 9), bytes(draws.randrange(256) for _ in range(270)))
                image.save(folder / part / name / f"{index:02d}.png")
    return folder


def build_overrides(optimizer: str, precision: str, workers: int, images: Path) -> list[str]:
    """Return the overrides of a run of twelve steps in two epochs, with a checkpoint after each step."""
    words = [
        f"optimizer={optimizer}",
        f"precision={precision}",
        "device=cpu",
        "batch_size=16",
        "epochs=2",
        "log_every=2",
    ]
    words += [
        "model.width=4",
        "model.dropout=0.3",
        "augment=basic",
        "augment.pad=1",
        "ema_decay=0.9",
        "noise=symmetric",
    ]
    words += ["noise.rate=0.2", "checkpoint.every_steps=1", "checkpoint.min_interval=0"]
    if workers:
        words += ["data=image_folder", f"data.root={images}", "data.storage=disk", "data.image_size=8"]
        return [*words, f"data.num_workers={workers}"]
    return [
        *words,
        "data=synthetic",
        "data.num_train=96",
        "data.num_test=32",
        "data.image_size=8",
        "data.num_classes=4",
    ]


def start(words: list[str], folder: Path, patch: Patch | None = None) -> int:
    """Run sam-train in a new process group, with its output in FOLDER.log; return the process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        with open(f"{folder}.log", "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115 - lives as long as the process
        if patch is not None:
            patch()
        sys.argv = ["sam-train", *words, f"run_dir={folder}"]
        code = train_command.main()
        sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        os._exit(code)


def wait(child: int, seconds: float = TIMEOUT) -> int | None:
    """Wait for a process; return its exit code, negative for a signal, or None if it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(child: int) -> None:
    """Kill a process and its data workers together, as a power failure does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def has_orphans(group: int) -> bool:
    """Return whether a process of the group still runs after five seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def read_outcome(folder: Path) -> dict:
    """Return the numbers that a run wrote and that an uninterrupted run must equal."""
    checkpoint = CheckpointFolder(folder / "checkpoints").load_latest()
    assert checkpoint is not None
    for measured in ("training_seconds", "peak_memory_bytes"):
        checkpoint["progress"].pop(measured)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in tags}
    return {"state": checkpoint, "metrics": (folder / "metrics.jsonl").read_bytes(), "steps": steps}


def is_equal(first: object, second: object) -> bool:
    """Return whether two nested values are equal, tensors to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(is_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(is_equal, first, second))
    return first == second


def find_resumed_step(folder: Path) -> int:
    """Return the step that the last process continued from."""
    lines = [line for line in Path(f"{folder}.log").read_text().splitlines() if line.startswith("continuing ")]
    return int(lines[-1].partition("after step ")[2].split(",")[0]) if lines else 0


def finish(words: list[str], folder: Path, patch: Patch | None = None) -> int | None:
    """Run to the end; return the exit code, None after a timeout."""
    child = start(words, folder, patch)
    code = wait(child)
    if code is None:
        kill(child)
    return code


class Reference:
    """An uninterrupted run: its outcome and its duration."""

    def __init__(self, words: list[str], folder: Path, patch: Patch | None = None) -> None:
        child = start(words, folder, patch)
        started = wait_for_training(child, folder)
        code = wait(child)
        self.training_seconds = time.monotonic() - started
        if code != 0:
            raise RuntimeError(f"the reference run ended with {code}:\n{Path(f'{folder}.log').read_text()[-2000:]}")
        self.outcome = read_outcome(folder)


def kill_at_random(
    words: list[str], folder: Path, reference: Reference, draws: random.Random, patch=None
) -> int | None:
    """Kill at a random moment, then continue; see `compare` for the result."""
    child = start(words, folder, patch)
    wait_for_training(child, folder)
    time.sleep(draws.uniform(0, 0.9 * reference.training_seconds))
    kill(child)
    return compare(words, folder, reference, patch)


def compare(words: list[str], folder: Path, reference: Reference, patch: Patch | None = None) -> int | None:
    """Continue to the end; return the step that it continued from, or None if it failed or the outcome differs."""
    code = finish(words, folder, patch)
    try:
        equal = code == 0 and is_equal(read_outcome(folder), reference.outcome)
    except Exception as error:  # e.g. a checkpoint that cannot be read
        print(f"{type(error).__name__}: {error}", flush=True)
        equal = False
    return find_resumed_step(folder) if equal else None


def kill_inside_save(draws: random.Random) -> Patch:
    """Return a patch with which a process kills itself in a save: while writing, before or after a flush or rename."""
    save_number, place, fraction = draws.randrange(1, 15), draws.choice(("write", "fsync", "replace")), draws.random()
    before = draws.random() < 0.5
    count = draws.randrange(1, 3)

    def patch() -> None:
        original_save, number, armed = CheckpointFolder.save, [0], [False]
        seen: Counter = Counter()

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def save(self, *arguments, **keywords):
            number[0] += 1
            armed[0] = number[0] == save_number
            try:
                return original_save(self, *arguments, **keywords)
            finally:
                armed[0] = False

        def around(name: str, original: Callable) -> Callable:
            def call(*arguments):
                seen[name] += armed[0]
                due = armed[0] and place == name and seen[name] >= count
                if due and before:
                    die()
                result = original(*arguments)
                if due:
                    die()
                return result

            return call

        original_write = checkpoints.write_atomically

        def write(path, fill):
            def partly(handle):
                if not (armed[0] and place == "write"):
                    return fill(handle)
                fill(handle)
                handle.flush()
                handle.truncate(int(fraction * handle.tell()))
                return die()

            original_write(path, partly)

        CheckpointFolder.save = save
        checkpoints.write_atomically = write
        files.os.fsync, files.os.replace = around("fsync", os.fsync), around("replace", os.replace)

    return patch


def combine(first: Patch | None, second: Patch | None) -> Patch:
    """Return a patch that applies two patches in order."""

    def patch() -> None:
        for entry in (first, second):
            if entry is not None:
                entry()

    return patch


def kill_in_save(words: list[str], folder: Path, reference: Reference, draws: random.Random, patch=None) -> int | None:
    """Kill inside a save, then continue; see `compare` for the result."""
    child = start(words, folder, combine(patch, kill_inside_save(draws)))
    if wait(child) is None:
        kill(child)
    return compare(words, folder, reference, patch)


def save_in_place() -> None:
    """M1: save one file in place, without a manifest."""

    def save(self, step, state, **_):
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "last.pt", "wb") as handle:
            torch.save({**state, "step": step}, handle)
            handle.flush()
            os.fsync(handle.fileno())

    def load_latest(self):
        path = self.folder / "last.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    CheckpointFolder.save, CheckpointFolder.load_latest = save, load_latest


def skip_rng_restore() -> None:
    """M2: do not restore the random state."""
    nothing = SimpleNamespace(restore=lambda *_: None)
    state.RngState = SimpleNamespace(capture=state.RngState.capture, from_state_dict=lambda _: nothing)


def keep_later_rows() -> None:
    """M3: keep the rows of metrics.jsonl that were logged after the checkpoint."""
    original = JsonlLogger.__init__
    JsonlLogger.__init__ = lambda self, folder, *_: original(self, folder, 1 << 40)


def restart_epochs() -> None:
    """M4: count the epochs of the loader from the start of the process."""
    original, seen = ImageLoader.epoch, Counter()

    def epoch(self, _=0, start=0):
        seen[id(self)] += 1
        return original(self, seen[id(self)] - 1, start)

    ImageLoader.epoch = epoch


MUTANTS: dict[str, tuple[Patch, str]] = {
    "M1 plain torch.save": (save_in_place, "plain save"),
    "M2 random state not restored": (skip_rng_restore, "random"),
    "M3 metrics.jsonl not truncated": (keep_later_rows, "save"),
    "M4 epoch of the loader not restored": (restart_epochs, "random"),
}


def kill_in_plain_save(draws: random.Random) -> Patch:
    """Return a patch for M1 that kills the process when half of the file is written."""
    number = draws.randrange(1, 12)

    def patch() -> None:
        original, count = torch.save, [0]

        def save(state, handle):
            original(state, handle)
            count[0] += 1
            if count[0] == number:
                handle.flush()
                handle.truncate(handle.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save

    return patch


def mutant_is_caught(name: str, words: list[str], folder: Path, draws: random.Random) -> bool:
    """Return whether one of 20 trials detects the mutant."""
    patch, kind = MUTANTS[name]
    reference = Reference(words, folder / "reference")
    if finish(words, folder / "mutant", patch) != 0:  # otherwise its crash would count as detected
        raise RuntimeError(f"the mutant does not run without a kill:\n{read_log(folder / 'mutant')[-2000:]}")
    for number in range(20):
        trial = folder / f"trial{number}"
        if kind == "plain save":
            child = start(words, trial, combine(patch, kill_in_plain_save(draws)))
            wait(child)
            code = finish(words, trial, patch)
            caught = code != 0
        elif kind == "save":  # after metrics.jsonl is flushed and before the checkpoint that stores its length
            caught = kill_in_save(words, trial, reference, draws, patch) is None
        else:
            caught = kill_at_random(words, trial, reference, draws, patch) is None
        if caught:
            return True
    return False


def stop_at_random(words: list[str], folder: Path, reference: Reference, draws: random.Random, *, group: bool) -> str:
    """Send SIGTERM at a random moment, to the process or to its group; return what went wrong, "" for nothing."""
    child = start(words, folder)
    wait_for_training(child, folder)
    time.sleep(draws.uniform(0, 0.7 * reference.training_seconds))
    began = time.monotonic()
    (os.killpg if group else os.kill)(child, signal.SIGTERM)
    code = wait(child)
    took = time.monotonic() - began
    if code == 0:
        return "too late"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    checkpoint = CheckpointFolder(folder / "checkpoints").load_latest()
    if code != 75 or took > 5:
        return f"ended with {code} after {took:.1f} s"
    if has_orphans(child):
        return "left processes behind"
    if checkpoint is None or (steps and checkpoint["step"] < max(steps)):
        return "lost a step"
    messages = [line for line in read_log(folder).splitlines() if line.startswith("SIGTERM: stopped after step ")]
    if not messages or int(messages[-1].split()[4]) != checkpoint["step"]:
        return "saved another step than it logged"
    return "" if compare(words, folder, reference) is not None else "continued to another outcome"


def wait_for_training(child: int, folder: Path) -> float:
    """Wait until the training starts; return the time."""
    began = time.monotonic()
    while peek_exit_code(child) is None and "run folder" not in read_log(folder):
        if time.monotonic() - began > TIMEOUT:
            kill(child)
            raise RuntimeError(f"the run did not begin to train within {TIMEOUT:g} s: {folder}.log")
        time.sleep(0.002)
    return time.monotonic()


def read_log(folder: Path) -> str:
    """Return what the processes of a trial have printed."""
    log = Path(f"{folder}.log")
    return log.read_text() if log.exists() else ""


def peek_exit_code(child: int) -> int | None:
    """Return the exit code of a process, None if it still runs; the process is not reaped."""
    result = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if result is None else result.si_status


def damage_checkpoints(folder: Path, draws: random.Random, flips: int) -> tuple[int, int, int, int]:
    """Damage a checkpoint; return detected bit flips, all bit flips, detected truncations, all truncations."""
    path = next((folder / "checkpoints").glob("step-*.pt"))
    work = folder.parent / "damaged"
    work.mkdir()
    for suffix in (".pt", ".json"):
        shutil.copy(path.with_suffix(suffix), work)
    copy, content = work / path.name, path.read_bytes()
    found = 0
    for _ in range(flips):
        damaged = bytearray(content)
        bit = draws.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        copy.write_bytes(damaged)
        found += check_manifest(copy.with_suffix(".json")) is not None
    copy.write_bytes(content)
    cut = 0
    with open(copy, "r+b") as handle:
        for length in reversed(range(len(content))):
            handle.truncate(length)
            cut += check_manifest(copy.with_suffix(".json")) is not None
    return found, flips, cut, len(content)


def start_sweep(folder: Path) -> subprocess.Popen:
    """Start a call of the sweep in a new process group; its output is in FOLDER/NUMBER.log."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sam_runner", "-m", *SWEEP]
    with (folder / f"{len(list(folder.glob('*.log')))}.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def read_metrics(folder: Path) -> dict[str, bytes]:
    """Return metrics.jsonl of the finished runs of the sweep by fingerprint."""
    results = (folder / "outputs" / "sweeps" / "s").glob("*/result.json")
    return {
        json.loads(path.read_text())["fingerprint"]: path.with_name("metrics.jsonl").read_bytes() for path in results
    }


def kill_sweep(folder: Path, reference: dict[str, bytes], seconds: float, *, group: bool) -> str:
    """Kill a sweep after some seconds and call it again from two processes at once.

    Args:
        folder: Working folder of the trial.
        reference: The metrics of an undisturbed sweep, as of `read_metrics`.
        seconds: When the first call is killed.
        group: Kill the whole process group; otherwise only the first process.

    Returns:
        What went wrong, "" for nothing.
    """
    first = start_sweep(folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        first.wait(seconds)
    if group:
        kill(first.pid)
    else:
        first.kill()
    first.wait()
    calls = [start_sweep(folder) for _ in range(2)]
    codes = [call.wait(SWEEP_TIMEOUT) for call in calls]
    report = (folder / "outputs" / "sweeps" / "s" / "report.csv").read_text()
    if codes != [0, 0]:
        return f"ended with {codes}"
    if any(call_has_errors(log.read_text()) for log in sorted(folder.glob("*.log"))[1:]):
        return "printed an error"
    if "refused" in report or report.count(",finished,") != NUM_DISTINCT_JOBS:
        return f"report:\n{report}"
    return "" if read_metrics(folder) == reference else "other metrics than undisturbed"


def call_has_errors(text: str) -> bool:
    """Return whether a call of sam-train printed an error or a traceback."""
    return any(line.startswith(("error:", "Traceback")) for line in text.splitlines())


class Trials:
    """The parts of the fault injection, which add tables to one report.

    Attributes:
        failures: A message for each trial that failed.
    """

    def __init__(self, work: Path, draws: random.Random, report: Report) -> None:
        self.work, self.draws, self.report, self.failures = work, draws, report, list[str]()
        self.images = write_images(work / "images")
        self.kinds: list[Kind] = [(o, p, w) for w in (0, 2) for o in ("sgd", "sam") for p in ("fp32", "bf16", "fp16")]
        self._references: dict[Kind, Reference] = {}

    def overrides(self, kind: Kind) -> list[str]:
        """Return the overrides of a kind of run."""
        return build_overrides(*kind, self.images)

    def reference(self, kind: Kind) -> Reference:
        """Return the uninterrupted run of a kind."""
        if kind not in self._references:
            folder = self.work / f"reference{len(self._references)}"
            self._references[kind] = Reference(self.overrides(kind), folder)
        return self._references[kind]

    def kill(self, title: str, trial: Callable[..., int | None], count: int) -> None:
        """Run trials in which the process is killed."""
        steps: Counter = Counter()
        for number in range(count):
            kind = self.kinds[number % len(self.kinds)]
            folder = self.work / f"{trial.__name__}{number}"
            step = trial(self.overrides(kind), folder, self.reference(kind), self.draws)
            if step is None:
                self.failures.append(f"{title}: {kind}, trial {number}:\n{read_log(folder)[-1500:]}")
                print(self.failures[-1], flush=True)
            else:
                steps[step] += 1
            shutil.rmtree(folder, ignore_errors=True)
        columns = ["trials", "continued to the bit", "distinct steps continued from", "steps: trials"]
        counts = " ".join(f"{step}:{number}" for step, number in sorted(steps.items()))
        self.report.table(title, columns, [[count, steps.total(), len(steps), counts]])
        if len(steps) < min(4, count // 3):
            self.failures.append(f"{title}: only {len(steps)} distinct steps, which proves little")

    def stop(self, count: int) -> None:
        """Run trials in which the process gets SIGTERM."""
        rows: Counter = Counter()
        for number in range(count):
            kind = self.kinds[(5 * number + 3) % len(self.kinds)]
            for attempt in range(20):
                folder, group = self.work / f"stop{number}-{attempt}", number % 2 == 1
                fault = stop_at_random(self.overrides(kind), folder, self.reference(kind), self.draws, group=group)
                if fault != "too late":
                    break
            rows[fault or "75 within 5 s, no step lost, continued to the bit, no process left"] += 1
            if fault:
                self.failures.append(f"SIGTERM: {kind}: {fault}\n{read_log(folder)[-1500:]}")
        columns = ["what happened", "trials"]
        self.report.table("SIGTERM, every other one to the whole group", columns, [list(row) for row in rows.items()])

    def kill_sweeps(self, count: int) -> None:
        """Run trials in which a sweep is killed and called again twice."""
        began = time.monotonic()
        if start_sweep(self.work / "sweep").wait(SWEEP_TIMEOUT) != 0:
            raise RuntimeError(f"the undisturbed sweep failed:\n{(self.work / 'sweep' / '0.log').read_text()[-2000:]}")
        duration, reference = time.monotonic() - began, read_metrics(self.work / "sweep")
        rows: Counter = Counter()
        for number in range(count):
            folder, seconds = self.work / f"sweep{number}", self.draws.uniform(0, duration)
            fault = kill_sweep(folder, reference, seconds, group=number % 2 == 1)
            rows[fault.partition("\n")[0] or "code 0 twice, 15 distinct runs with the undisturbed metrics"] += 1
            if fault:
                logs = "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
                self.failures.append(f"sweep killed after {seconds:.1f} of {duration:.1f} s: {fault}\n{logs}")
                print(self.failures[-1], flush=True)
            shutil.rmtree(folder)
        title = "Sweep killed at a random moment (every other time with its processes), then called twice at once"
        self.report.table(title, ["what happened", "trials"], [list(row) for row in rows.items()])

    def damage(self, num_flips: int) -> None:
        """Damage the checkpoint of a reference run."""
        self.reference(self.kinds[0])
        found, flips, cut, length = damage_checkpoints(self.work / "reference0", self.draws, num_flips)
        columns = ["bit flips", "of", "truncations", "of"]
        self.report.table("Damaged checkpoints found", columns, [[found, flips, cut, length]])
        if (found, cut) != (flips, length):
            self.failures.append("a damaged checkpoint was not detected")

    def check_mutants(self) -> None:
        """Require that the trials detect each mutant."""
        rows = []
        for name in MUTANTS:
            folder = self.work / name.split()[0]
            folder.mkdir()
            is_caught = mutant_is_caught(name, self.overrides(("sam", "fp32", 0)), folder, self.draws)
            rows.append([name, "yes" if is_caught else "no"])
            if not is_caught:
                self.failures.append(f"mutant not caught: {name}")
        self.report.table("Mutants", ["mutant", "caught"], rows)


def main() -> int:
    """Run the trials; return exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="200 random kills, 50 in saves, 20 sweeps")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/faults"))
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    print(f"seed {seed}", flush=True)
    num_random, num_in_save, num_stops, num_flips = (200, 50, 20, 1000) if options.long else (24, 12, 6, 300)
    num_sweeps = 20 if options.long else 2
    start_time, report = time.monotonic(), Report("Faults", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name), random.Random(seed), report)
        if "damage" in options.parts:
            trials.damage(num_flips)
        if "kills" in options.parts:
            trials.kill("killed at a random moment", kill_at_random, num_random)
            trials.kill("killed inside a save", kill_in_save, num_in_save)
        if "stops" in options.parts:
            trials.stop(num_stops)
        if "sweeps" in options.parts:
            trials.kill_sweeps(num_sweeps)
        if "mutants" in options.parts:
            trials.check_mutants()
    print(f"{time.monotonic() - start_time:.0f} s", flush=True)
    report.write(options.out, "faults-long" if options.long else "faults")
    for failure in trials.failures:
        print(f"FAILED {failure}", flush=True)
    return 1 if trials.failures else 0


if __name__ == "__main__":
    loop.tqdm  # noqa: B018 - imports what the forked processes need
    sys.exit(main())
