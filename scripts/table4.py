"""The paper's table of label noise (Table 4): thin ResNet-32, four rates, SGD and SAM, in pieces of some minutes.

    python scripts/table4.py --data FOLDER [--device cuda] [--minutes 9] [--epochs 200] [--jobs 8] [--out FOLDER]

FOLDER is an image folder of CIFAR-10. The same command again goes on where it was stopped: finished cells are kept, an
unfinished one continues from its last step. --device cpu rehearses with random images and two steps a cell.
Cells that share a GPU run their kernels side by side under CUDA's MPS, where it is installed; else they take turns.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from measuring import Report, arguments

ROOT = Path(__file__).resolve().parent.parent
PAPER = {  # Foret et al. (2021), Table 4: test accuracy in %, of a wider ResNet-32 on the original CIFAR-10
    "sgd": {0.2: 84.8, 0.4: 68.8, 0.6: 48.2, 0.8: 26.2},
    "sam": {0.2: 95.1, 0.4: 93.4, 0.6: 90.5, 0.8: 77.9},
}
RHO = {0.2: 0.1, 0.4: 0.1, 0.6: 0.1, 0.8: 0.05}  # as there


def command(rate: float, optimizer: str, folder: Path, options) -> list[str]:
    """One cell."""
    words = [
        sys.executable,
        "-m",
        "sam_runner",
        f"optimizer={optimizer}",
        f"run_dir={folder}",
        f"device={options.device}",
    ]
    words += [
        "noise=symmetric",
        f"noise.rate={rate}",
        "augment=basic",
        "lr=0.1",
        "weight_decay=0.0005",
        "model=resnet32",
    ]
    words += [f"rho={RHO[rate]}"] if optimizer == "sam" else []
    if options.device == "cpu":
        tiny = ["data=synthetic", "data.channels=3", "data.num_train=64", "data.num_test=32", "model=resnet20"]
        return [*words, *tiny, "batch_size=32", "epochs=1", "max_steps=2"]
    data = ["data=image_folder", f"data.root={options.data}", "batch_size=256", f"epochs={options.epochs}"]
    return [*words, *data, "compile=graph"]


@contextmanager
def side_by_side(wanted: bool) -> Iterator[dict[str, str]]:
    """A server of MPS of our own; the environment in which processes share the GPU through it, empty without one."""
    control = shutil.which("nvidia-cuda-mps-control") if wanted else None
    if control is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        started = subprocess.run([control, "-d"], env=os.environ | own, capture_output=True, text=True)
        if started.returncode:
            print(f"no MPS, cells take turns: {started.stdout} {started.stderr}", flush=True)
            yield {}
            return
        try:
            yield own
        finally:
            subprocess.run([control], input="quit\n", text=True, env=os.environ | own, timeout=60)


def works(environment: dict[str, str]) -> bool:
    """Whether a process reaches the GPU in it."""
    code = "import torch; print(torch.ones(3, device='cuda').sum().item())"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.stdout.strip() == "3.0"


def run_until(words: list[str], seconds: float, environment: dict[str, str]) -> bool:
    """Run; at the end of the time interrupt, which saves. Whether it came to its end."""
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ | environment)
    try:
        return process.wait(timeout=max(seconds, 1)) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        return False


def main() -> int:
    """Run what is missing, then print the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(device="cuda", out=Path("outputs/table4"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--jobs", type=int, help="cells that share the device (8, on a CPU 2)")
    options = parser.parse_args()
    options.jobs = options.jobs or (8 if options.device == "cuda" else 2)
    if options.device == "cuda" and (options.data is None or not options.data.is_dir()):
        print(f"error: --data={options.data} is not a folder of CIFAR-10 images", file=sys.stderr)
        return 2
    options.data = options.data.resolve() if options.data else None
    end = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()

    def cell(rate: float, optimizer: str, environment: dict[str, str]) -> str:
        """Name of the cell where it did not come to its end."""
        folder = out / f"{optimizer}-{rate}"
        if (folder / "result.json").is_file():
            return ""
        left = end - time.monotonic() - 10
        ended = left >= 5 and run_until(command(rate, optimizer, folder, options), left, environment)
        return "" if ended else f"{optimizer} at {rate:.0%}"

    with side_by_side(options.device == "cuda" and options.jobs > 1) as environment:
        if environment and not works(environment):
            print("MPS does not answer, cells take turns", flush=True)
            environment = {}
        with ThreadPoolExecutor(options.jobs) as pool:
            cells = [pool.submit(cell, rate, optimizer, environment) for optimizer in ("sam", "sgd") for rate in RHO]
        missing = [done.result() for done in cells if done.result()]
    report = Report("Table 4: label noise", torch.device(options.device))
    rows = []
    for optimizer, paper in PAPER.items():
        for rate in RHO:
            result = out / f"{optimizer}-{rate}" / "result.json"
            final = json.loads(result.read_text()) if result.is_file() else None
            measured = (
                [100 * final["final"]["test/accuracy"], final["epoch"], final["images_per_second"]]
                if final
                else ["-"] * 3
            )
            rows.append([optimizer, f"{rate:.0%}", paper[rate], *measured])
    columns = ["optimizer", "noise", "paper, %", "ours, %", "epochs", "images/s"]
    note = "One seed; thin ResNet-32 (0.46 M), the paper's is wider. " + (
        f"Missing: {', '.join(missing)}." if missing else ""
    )
    report.table("Accuracy on the clean test set", columns, rows, note)
    report.write(out, "table4")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
