"""Kills and other faults: a run that is stopped in any way goes on as if nothing had happened.

    python scripts/faults.py [--long] [--out outputs/faults]

Each trial starts ``sam-train`` as a process of its own (a fork of this one, which has torch loaded already), kills it,
starts the same command again until it is done, and compares weights, optimizer, metrics.jsonl, TensorBoard's steps
with those of a run that nobody killed. --long: 200 kills at random moments and 50 inside saves, not some of each.
The four mutants at the end must be caught, or the trials show nothing.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measuring import Report
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sam_runner.commands import train as train_command
from sam_runner.data.loader import ImageLoader
from sam_runner.runs.logging import Tracker
from sam_runner.training import checkpoints, loop
from sam_runner.training import state as run
from sam_runner.training.checkpoints import CheckpointFolder
from sam_runner.utils import files
from sam_runner.utils.manifest import check_manifest

torch.set_num_threads(1)
LIMIT = 30.0  # seconds that any process may take
Patch = Callable[[], None]


def pictures(folder: Path) -> Path:
    """Ninety-six images of two classes to train on."""
    draws = random.Random(0)
    for part, count in (("train", 48), ("test", 8)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.frombytes("RGB", (10, 9), bytes(draws.randrange(256) for _ in range(270)))
                image.save(folder / part / name / f"{index:02d}.png")
    return folder


def settings(optimizer: str, precision: str, workers: int, images: Path) -> list[str]:
    """Twelve steps in two epochs, a checkpoint after each."""
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
    """A process in a group of its own that runs sam-train; its output goes to FOLDER.log."""
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


def ended(child: int, seconds: float = LIMIT) -> int | None:
    """Exit code, negative for a signal; None where it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(child: int) -> None:
    """The process and its workers, as a machine that goes down."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def orphans(group: int) -> bool:
    """Whether anything of a process group is left after five seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def outcome(folder: Path) -> dict:
    """What has to be equal: every number that a run leaves."""
    state = CheckpointFolder(folder / "checkpoints").latest()
    assert state is not None
    state["progress"].pop("seconds")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in tags}
    return {"state": state, "metrics": (folder / "metrics.jsonl").read_bytes(), "steps": steps}


def same(first: object, second: object) -> bool:
    """To the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def resumed_at(folder: Path) -> int:
    """The step that the last start went on from."""
    lines = [line for line in Path(f"{folder}.log").read_text().splitlines() if line.startswith("continuing ")]
    return int(lines[-1].partition("after step ")[2].split(",")[0]) if lines else 0


def finish(words: list[str], folder: Path, patch: Patch | None = None) -> int | None:
    """Run to the end; the exit code."""
    child = start(words, folder, patch)
    code = ended(child)
    if code is None:
        kill(child)
    return code


class Reference:
    """The run that nobody killed, and how long it takes."""

    def __init__(self, words: list[str], folder: Path, patch: Patch | None = None) -> None:
        child = start(words, folder, patch)
        started = under_way(child, folder)
        code = ended(child)
        self.training_seconds = time.monotonic() - started
        if code != 0:
            raise RuntimeError(f"the reference run ended with {code}:\n{Path(f'{folder}.log').read_text()[-2000:]}")
        self.outcome = outcome(folder)


def killed_at_random(
    words: list[str], folder: Path, reference: Reference, draws: random.Random, patch=None
) -> int | None:
    """Kill at a random moment, go on; the step it went on from, or None where the result is another."""
    child = start(words, folder, patch)
    under_way(child, folder)
    time.sleep(draws.uniform(0, 0.9 * reference.training_seconds))
    kill(child)
    return compare(words, folder, reference, patch)


def compare(words: list[str], folder: Path, reference: Reference, patch: Patch | None = None) -> int | None:
    """Go on to the end; the step it went on from, or None where it ended badly or elsewhere."""
    code = finish(words, folder, patch)
    try:
        equal = code == 0 and same(outcome(folder), reference.outcome)
    except Exception as error:  # a checkpoint that cannot be read, say
        print(f"{type(error).__name__}: {error}", flush=True)
        equal = False
    return resumed_at(folder) if equal else None


def kill_inside_save(draws: random.Random) -> Patch:
    """Make a process kill itself within one of its saves: while writing, before or after a flush or a rename."""
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


def both(first: Patch | None, second: Patch | None) -> Patch:
    """One after the other."""

    def patch() -> None:
        for entry in (first, second):
            if entry is not None:
                entry()

    return patch


def killed_in_save(
    words: list[str], folder: Path, reference: Reference, draws: random.Random, patch=None
) -> int | None:
    """Kill inside a save, go on; as `killed_at_random`."""
    child = start(words, folder, both(patch, kill_inside_save(draws)))
    if ended(child) is None:
        kill(child)
    return compare(words, folder, reference, patch)


def plain_save() -> None:
    """M1: one file, written in place, without a manifest."""

    def save(self, step, state, **_):
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "last.pt", "wb") as handle:
            torch.save({**state, "step": step}, handle)
            handle.flush()
            os.fsync(handle.fileno())

    def latest(self):
        path = self.folder / "last.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    CheckpointFolder.save, CheckpointFolder.latest = save, latest


def no_generator() -> None:
    """M2: the generators are not put back."""
    run.RngState = type("RngState", (run.RngState,), {"restore": lambda *_: None})


def no_cut() -> None:
    """M3: metrics.jsonl keeps what was logged after the checkpoint."""
    original = Tracker.__init__
    Tracker.__init__ = lambda self, folder, step=0, *_: original(self, folder, step, 1 << 40)


def no_epoch() -> None:
    """M4: each process counts its epochs from the first."""
    original, seen = ImageLoader.epoch, Counter()

    def epoch(self, _=0, start=0):
        seen[id(self)] += 1
        return original(self, seen[id(self)] - 1, start)

    ImageLoader.epoch = epoch


MUTANTS: dict[str, tuple[Patch, str]] = {
    "M1 plain torch.save": (plain_save, "plain save"),
    "M2 generators not restored": (no_generator, "random"),
    "M3 metrics.jsonl not cut": (no_cut, "save"),
    "M4 epoch of the sampler not restored": (no_epoch, "random"),
}


def kill_in_plain_save(draws: random.Random) -> Patch:
    """For M1, which writes elsewhere: half of the file is there."""
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
    """Whether one of some trials shows it."""
    patch, kind = MUTANTS[name]
    reference = Reference(words, folder / "reference")
    for number in range(20):
        trial = folder / f"trial{number}"
        if kind == "plain save":
            child = start(words, trial, both(patch, kill_in_plain_save(draws)))
            ended(child)
            code = finish(words, trial, patch)
            caught = code != 0
        elif kind == "save":  # between the flush of metrics.jsonl and the commit of the checkpoint that knows of it
            caught = killed_in_save(words, trial, reference, draws, patch) is None
        else:
            caught = killed_at_random(words, trial, reference, draws, patch) is None
        if caught:
            return True
    return False


def stopped(words: list[str], folder: Path, reference: Reference, draws: random.Random, *, group: bool) -> str:
    """SIGTERM at a random moment of the training, to the process or its group; what is wrong, or nothing."""
    child = start(words, folder)
    under_way(child, folder)
    time.sleep(draws.uniform(0, 0.7 * reference.training_seconds))
    began = time.monotonic()
    (os.killpg if group else os.kill)(child, signal.SIGTERM)
    code = ended(child)
    took = time.monotonic() - began
    if code == 0:
        return "too late"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = CheckpointFolder(folder / "checkpoints").latest()
    if code != 75 or took > 5:
        return f"ended with {code} after {took:.1f} s"
    if orphans(child):
        return "left processes behind"
    if state is None or (steps and state["step"] < max(steps)):
        return "lost a step"
    said = [line for line in read(folder).splitlines() if line.startswith("SIGTERM: stopped after step ")]
    if not said or int(said[-1].split()[4].rstrip(",")) != state["step"]:
        return "saved another step than it said"
    return "" if compare(words, folder, reference) is not None else "went on elsewhere"


def under_way(child: int, folder: Path) -> float:
    """Wait until the training begins; the moment."""
    while ended_early(child) is None and "run folder" not in read(folder):
        time.sleep(0.002)
    return time.monotonic()


def read(folder: Path) -> str:
    """What a process has printed."""
    log = Path(f"{folder}.log")
    return log.read_text() if log.exists() else ""


def ended_early(child: int) -> int | None:
    """Exit code where it has ended; it is not collected."""
    result = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if result is None else result.si_status


def damages(folder: Path, draws: random.Random, flips: int) -> tuple[int, int, int, int]:
    """Bit flips found, of how many; truncations found, of how many."""
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


def main() -> int:
    """All trials; exit code 1 where one shows a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="200 random kills, 50 in saves")
    parser.add_argument("--out", type=Path, default=Path("outputs/faults"))
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    draws = random.Random(seed)
    print(f"seed {seed}", flush=True)
    num_random, num_in_save, num_stops, num_flips = (200, 50, 20, 1000) if options.long else (24, 12, 6, 300)
    started, report, failures = time.monotonic(), Report("Faults", torch.device("cpu")), []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = pictures(work / "images")
        kinds = [(o, p, w) for w in (0, 2) for o in ("sgd", "sam") for p in ("fp32", "bf16", "fp16")]
        references = {}
        for number, kind in enumerate(kinds):
            references[kind] = Reference(settings(*kind, images), work / f"reference{number}")
        for title, trial, count in (
            ("killed at a random moment", killed_at_random, num_random),
            ("killed inside a save", killed_in_save, num_in_save),
        ):
            steps: Counter = Counter()
            equal = 0
            for number in range(count):
                kind = kinds[number % len(kinds)]
                folder = work / f"{trial.__name__}{number}"
                step = trial(settings(*kind, images), folder, references[kind], draws)
                equal += step is not None
                if step is None:
                    print(f"{title}: {kind}, trial {number}:\n{read(folder)[-1500:]}", flush=True)
                    failures.append(f"{title}: {kind}, trial {number}:\n{read(folder)[-1500:]}")
                else:
                    steps[step] += 1
                shutil.rmtree(folder, ignore_errors=True)
            columns = ["trials", "went on to the bit", "distinct steps it went on from", "steps: trials"]
            shown = " ".join(f"{step}:{number}" for step, number in sorted(steps.items()))
            report.table(title, columns, [[count, equal, len(steps), shown]])
            if len(steps) < min(4, count // 3):
                failures.append(f"{title}: only {len(steps)} distinct steps, which shows little")
        rows = Counter()
        for number in range(num_stops):
            kind = kinds[(5 * number + 3) % len(kinds)]
            for attempt in range(20):
                folder = work / f"stop{number}-{attempt}"
                wrong = stopped(settings(*kind, images), folder, references[kind], draws, group=number % 2 == 1)
                if wrong != "too late":
                    break
            rows[wrong or "75 within 5 s, no step lost, went on to the bit, nothing left running"] += 1
            if wrong:
                failures.append(f"SIGTERM: {kind}: {wrong}\n{read(folder)[-1500:]}")
        report.table(
            "SIGTERM, every other one to the whole group",
            ["what happened", "trials"],
            [list(row) for row in rows.items()],
        )
        found, flips, cut, length = damages(work / "reference0", draws, num_flips)
        report.table(
            "Damaged checkpoints found", ["bit flips", "of", "truncations", "of"], [[found, flips, cut, length]]
        )
        if (found, cut) != (flips, length):
            failures.append("a damaged checkpoint was taken for good")
        caught = {}
        for name in MUTANTS:
            folder = work / name.split()[0]
            folder.mkdir()
            caught[name] = mutant_is_caught(name, settings("sam", "fp32", 0, images), folder, draws)
            if not caught[name]:
                failures.append(f"mutant not caught: {name}")
        report.table(
            "Mutants", ["mutant", "caught"], [[name, "yes" if value else "no"] for name, value in caught.items()]
        )
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    report.write(options.out, "faults-long" if options.long else "faults")
    for failure in failures:
        print(f"FAILED {failure}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    loop.tqdm  # noqa: B018 - what a child needs is loaded before it is forked
    sys.exit(main())
