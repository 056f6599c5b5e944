"""How tests reach the product: settings as the command line composes them, and the command line itself."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from sam_runner.commands import train
from sam_runner.config.experiment import load_experiment
from sam_runner.config.hydra.compose import compose_experiment, compose_settings, plain_settings, register_settings
from sam_runner.runs.start import start_run

TINY = (
    "data=synthetic", "data.num_train=96", "data.num_test=32", "data.image_size=8", "data.channels=1",
    "data.num_classes=4", "model.width=4", "batch_size=16", "epochs=2", "device=cpu", "log_every=2",
    "checkpoint.min_interval=0",
)  # fmt: skip
register_settings()
CALLS = itertools.count()


def compose_config(*overrides):
    """The composed configuration, as Hydra hands it over."""
    return compose_settings(overrides)


def config_of(*overrides):
    """Validated settings."""
    return compose_experiment(overrides)


def job_config(*overrides):
    """Validated settings of a sweep's job."""
    return load_experiment(plain_settings(compose_settings(overrides)), multirun=True)


def train_tiny(folder, *overrides):
    """One run of the tiny problem in this process, into `folder`."""
    overrides = (*TINY, *overrides, f"run_dir={folder}")
    start_run(config_of(*overrides), overrides)
    return folder


def read_rows(folder, name="metrics.jsonl"):
    """The rows that a run logged."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def write_image_folder(folder):
    """128 images of 8x8 pixels: two classes with 32 training and 32 test images each."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for index in range(32):
                Image.new("RGB", (8, 8), (index, 0, 64 * (part == "test"))).save(folder / part / name / f"{index}.png")
    return folder


def write_experiment(folder, text, name="own"):
    """The file of an experiment in the folder `mine`, for `--config-dir mine experiment=own`."""
    path = folder / "mine" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def invoke(monkeypatch, capsys, folder, *arguments, entry=train.main):
    """`sam-train ...` in this process, from `folder`: quick, where a start-up of its own proves nothing.

    The jobs of a sweep run in this process too, one after the other.
    """
    if "-m" in arguments and not any("sweep.jobs" in str(word) or "launcher" in str(word) for word in arguments):
        arguments = (*arguments, "sweep.jobs=1")
    GlobalHydra.instance().clear()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["sam-train", *map(str, arguments)])
    monkeypatch.setenv("SAM_RUNNER_STARTED", f"call{next(CALLS)}")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code = entry()
    printed = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)


def environment_of_a_call():
    """This process's environment, without the mark of a command that runs in it, and with one thread."""
    environment = {key: value for key, value in os.environ.items() if key != "SAM_RUNNER_STARTED"}
    return environment | {"OMP_NUM_THREADS": "1"}


def command(*arguments, cwd, timeout=120, env=None):
    """`python -m sam_runner ...` as a process of its own; what it left and printed."""
    return subprocess.run(
        [sys.executable, "-m", "sam_runner", *map(str, arguments)],
        cwd=cwd, env=environment_of_a_call() | (env or {}),
        capture_output=True, text=True, timeout=timeout,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def at_once(function, arguments):
    """What a function returns for each argument, in processes that begin together.

    They are forks of this process, which has imported torch already.
    """
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(arguments), context) as processes:
        return list(processes.map(function, arguments))


def wait_for(condition, seconds=90):
    """Until it holds; an AssertionError where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
