"""Run everything that needs a GPU in less than nine minutes: tests, benchmarks of step and loader, training.

    python scripts/checks/gpu.py [--device cuda] [--data FOLDER] [--minutes 9] [--out outputs/gpu]

FOLDER is an image folder of 32x32 images (CIFAR-10 as JPEG files); without it random images are used for training. The
report names the parts that there was no time for. --device cpu runs all parts but the loader's in tiny sizes.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sam_runner.runs.dry_run import count_forward_flops
from sam_runner.sam.batch import Batch
from sam_runner.sam.cuda_graph import CapturedStep, EagerRecorder
from sam_runner.sam.objective import Objective
from sam_runner.sam.step import SamStep
from sam_runner.utils.hardware import configure_torch
from scripts.benchmarks.data import measure_in_memory
from scripts.benchmarks.jpeg import list_files, measure_crops, measure_workers, write_images
from scripts.benchmarks.measuring import Report, make_parser, median, take_turns, wait
from scripts.benchmarks.step import MODELS, SGD

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    ("thin ResNet-32", 256, 32, 10),
    ("WRN-28-10", 256, 32, 10),
    ("ResNet-18", 256, 32, 10),
    ("ResNet-50", 128, 224, 1000),
]
TINY = [("thin ResNet-32", 4, 32, 10)]
TRAINED = ["batch_size=128", "augment=basic", "lr=0.1"]  # settings of the runs through the command line


class Clock:
    """A time limit."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()


def run_tests(report: Report, device: torch.device, clock: Clock, out: Path) -> bool:
    """Run the tests marked gpu; return whether they passed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "SAM_RUNNER_TEST_DEVICE": device.type, "PYTHONPATH": path}
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/scripts/checks/test_gpu.py"]
    words += ["--tb=short", "--durations=5"]
    words += ["-n", "4"] if device.type == "cuda" else []
    started = time.monotonic()
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(clock.left(), 1)
    )
    print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
    (out / "tests.log").write_text(done.stdout + done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-200:]
    report.table("Tests marked gpu", ["outcome", "s"], [[last, time.monotonic() - started]])
    return done.returncode == 0


def compile_ahead(device: torch.device, out: Path) -> list[subprocess.Popen]:
    """Start a process for each network that fills the compiler's cache on disk while the tests run."""
    on_gpu = device.type == "cuda"
    commands = {
        name: [__file__, "--device", device.type, "--compile", name] for name, *_ in (CASES if on_gpu else TINY)
    }
    if on_gpu:
        few = ["data=synthetic", "data.channels=3", "data.image_size=32", "data.num_train=1280", "data.num_test=512"]
        words = [*few, *TRAINED, "model=resnet32", "compile=graph", "optimizer=sam", "max_steps=8"]
        commands["the command line"] = ["-m", "sam_runner", *words, f"run_dir={out / f'compiled-{int(time.time())}'}"]
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "3"}
    started = []
    for name, words in commands.items():
        with (out / f"compile {name}.log").open("wb") as log:
            command = [sys.executable, "-W", "ignore", *words]
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def wait_for(processes: list[subprocess.Popen], clock: Clock) -> None:
    """Wait until the processes have ended, for at most a fifth of the time that is left; then kill them."""
    until = time.monotonic() + clock.left() / 5
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode:
            print(f"compiling ahead: exit code {process.returncode} of {process.args[2:]}", flush=True)


def measure_matrix_rate(device: torch.device, rounds: int) -> float:
    """Return the floating-point operations per second of a bf16 matrix product, the denominator of MFU."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = take_turns({"product": lambda: a @ b}, rounds, device)
    if device.type != "cuda":
        return float("nan")  # on a CPU the table has no MFU
    return 2 * size**3 / median(seconds, "product")


def repeat(step: Callable, batch: Batch, rho: float, count: int) -> Callable[[], None]:
    """Return a function that takes `count` steps: single steps on a GPU would measure the host."""

    def run() -> None:
        for _ in range(count):
            step(batch, rho)

    return run


def measure_steps(report: Report, device: torch.device, clock: Clock) -> None:
    """Measure eager, compiled and captured steps of SAM and SGD."""
    on_gpu = device.type == "cuda"
    rounds, count = (5, 10) if on_gpu else (1, 1)
    rate = measure_matrix_rate(device, 20 if on_gpu else 2)
    rows, left_out = [], []
    for name, batch_size, side, classes in CASES if on_gpu else TINY:
        for route in ("eager", "eager captured", "compiled captured"):
            if clock.left() < (75 if "compiled" in route and on_gpu else 10):
                left_out.append(f"{name} {route}")
                continue
            try:
                rows.append(measure_case(report, name, batch_size, side, classes, route, device, rounds, count, rate))
            except Exception as error:  # one route that fails must not hide the others
                traceback.print_exc()
                rows.append([name, batch_size, route, f"failed: {type(error).__name__}: {str(error)[:80]}", *["-"] * 6])
            print(rows[-1], flush=True)
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
    columns = [
        "model",
        "batch",
        "route",
        "SAM, ms",
        "SGD, ms",
        "SAM/SGD",
        "of floor",
        "SAM images/s",
        "MFU",
        "peak, GiB",
    ]
    note = (
        f"bf16, channels_last. Measured rate of a matrix product: {rate / 1e12:.3g} TFLOP/s in bf16; MFU is the rate "
        "of 6 forward passes per image, relative to it. Floor: two SGD steps minus one step of the base optimizer."
        + (f" No time for: {', '.join(left_out)}." if left_out else "")
    )
    report.table("SAM steps", columns, rows, note)
    if on_gpu:

        def best_of(name: str, column: int) -> float:
            return max((row[column] for row in rows if row[0] == name and row[column] != "-"), default=0.0)

        speed, mfu, floor = best_of("thin ResNet-32", 7), best_of("WRN-28-10", 8), best_of("ResNet-50", 6)
        report.check("thin ResNet-32, batch 256, SAM, images/s", speed, 60_000, at_most=False)
        report.check("WRN-28-10, batch 256, SAM, MFU", mfu, 0.45, at_most=False)
        report.check("ResNet-50, SAM, floor over step", floor, 0.95, at_most=False)


def build_network(name: str, batch_size: int, side: int, classes: int, device: torch.device) -> tuple[nn.Module, Batch]:
    """Return a model of `MODELS`, and a batch of random images for it."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device).to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    return model, Batch(images, torch.arange(batch_size, device=device) % classes)


def build_step(model: nn.Module, route: str, device: torch.device) -> tuple[torch.optim.Optimizer, Callable]:
    """Return the base optimizer and the step; `route` is eager or compiled, and captured or not."""
    forward: nn.Module | Callable = torch.compile(model, dynamic=False) if "compiled" in route else model
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **SGD)
    step = SamStep(Objective(model, F.cross_entropy, forward=forward, autocast_dtype=torch.bfloat16), optimizer)
    if "captured" in route:
        return optimizer, CapturedStep(step, None if device.type == "cuda" else EagerRecorder())
    return optimizer, step


def measure_case(
    report: Report,
    name: str,
    batch_size: int,
    side: int,
    classes: int,
    route: str,
    device,
    rounds: int,
    count: int,
    rate: float,
):
    """Measure one model by one route; return a row of the table."""
    model, batch = build_network(name, batch_size, side, classes, device)
    flops = count_forward_flops(model, tuple(batch.inputs.shape[1:]))
    optimizer, step = build_step(model, route, device)
    for rho in (0.05, 0.0):
        for _ in range(5):
            step(batch, rho)
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    contenders = {"SAM": repeat(step, batch, 0.05, count), "SGD": repeat(step, batch, 0.0, count)}
    contenders["update"] = lambda: [optimizer.step() for _ in range(count)]
    seconds = take_turns(contenders, rounds, device)
    sam, sgd, update = (median(seconds, entry) / count for entry in contenders)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    if device.type == "cuda" and "compiled" in route:
        profile_kernels(report, f"{name}, {route}", contenders["SAM"], count)
    return [
        name, batch_size, route, sam * 1e3, sgd * 1e3, sam / sgd, (2 * sgd - update) / sam, batch_size / sam,
        6 * flops * batch_size / sam / rate, peak,
    ]  # fmt: skip


def profile_kernels(report: Report, name: str, step: Callable[[], None], count: int) -> None:
    """Profile a function that takes `count` steps, and report the time of each kernel."""
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    spent: dict[str, list[float]] = {}
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            entry = spent.setdefault(event.name[:70], [0.0, 0])
            entry[0] += event.device_time / 1e3 / count
            entry[1] += 1 / count
    rows = [[kernel, ms, calls] for kernel, (ms, calls) in sorted(spent.items(), key=lambda item: -item[1][0])]
    total, launched = (sum(row[column] for row in rows) for column in (1, 2))
    rest = [f"{len(rows) - 14} others", sum(row[1] for row in rows[14:]), sum(row[2] for row in rows[14:])]
    note = f"{total:.3g} ms of {1e3 * seconds / count:.3g} ms a step under the profiler, {launched:.0f} kernels."
    report.table(f"Kernels of a SAM step: {name}", ["kernel", "ms", "calls"], [*rows[:14], rest], note)


def run_training(report: Report, device: torch.device, clock: Clock, data: Path | None, out: Path) -> None:
    """Train with SGD and with SAM through the command line."""
    on_gpu = device.type == "cuda"
    if data is not None:
        settings = ["data=image_folder", f"data.root={data}"]
    else:
        settings = ["data=synthetic", "data.channels=3", "data.image_size=32"]
    settings += [*TRAINED, "model=resnet32" if on_gpu else "model=resnet20", f"device={device.type}"]
    settings += ["compile=graph", "epochs=10"] if on_gpu else ["epochs=1", "max_steps=2", "batch_size=32"]
    rows = []
    for optimizer in (["optimizer=sgd"], ["optimizer=sam", "rho=0.05"]):
        folder = out / f"run-{optimizer[0].partition('=')[2]}-{int(time.time())}"
        words = [sys.executable, "-m", "sam_runner", *settings, *optimizer, f"run_dir={folder}"]
        limit = max(clock.left() - 5, 1)
        try:
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit)
            print(done.stdout[-1500:], done.stderr[-1500:], flush=True)
            result = json.loads((folder / "result.json").read_text())
            rows.append(
                [" ".join(optimizer), result["epoch"], result["final"]["test/accuracy"], result["images_per_second"]]
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            rows.append([" ".join(optimizer), "-", f"no result: {type(error).__name__}", "-"])
    where = "the image folder" if data else "random images"
    report.table(f"Training on {where}", ["optimizer", "epochs", "test accuracy", "images/s"], rows, " ".join(settings))


def main() -> int:
    """Run all parts, and write the report after each."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.set_defaults(device="cuda", out=Path("outputs/gpu"))
    parser.add_argument("--data", type=Path, help="image folder of 32x32 images")
    parser.add_argument("--minutes", type=float, default=9, help="time limit")
    parser.add_argument("--compile", metavar="NAME", help="only compile a network, to fill the cache")
    options = parser.parse_args()
    device, clock = torch.device(options.device), Clock(options.minutes)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device; use --device cpu for a small version", file=sys.stderr)
        return 2
    configure_torch(device)
    if options.compile:
        ((_, *sizes),) = (entry for entry in (CASES if device.type == "cuda" else TINY) if entry[0] == options.compile)
        model, batch = build_network(options.compile, *sizes, device)
        build_step(model, "compiled", device)[1](batch, 0.05)
        wait(device)
        return 0
    report, out = Report("On the device", device), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    compiling = compile_ahead(device, out)
    passed = run_tests(report, device, clock, out)
    report.write(out, "gpu")
    wait_for(compiling, clock)
    if device.type == "cuda":
        measure_in_memory(report, 2, device)
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), 64)
            files = list_files(Path(folder))
            measure_crops(report, 2, files, str(Path(folder) / "cache"), "generated, 500x375")
            measure_workers(report, files, device)
        report.write(out, "gpu")
    run_training(report, device, clock, options.data.resolve() if options.data else None, out)
    report.write(out, "gpu")
    measure_steps(report, device, clock)  # last, because it uses all the time that is left
    report.write(out, "gpu")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
