"""Run sam-train and sam-eval in worker processes that stay for the next run, so that Python and CUDA start once.

Processes that share a GPU compute at the same time with CUDA's Multi-Process Service (MPS) where it is installed, and
take turns otherwise.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from sam_runner.commands import evaluate, train
from sam_runner.utils.errors import PREEMPTED, RunInterrupt

RUNNING = threading.Event()  # this worker process executes commands
STOPPING = threading.Event()  # this worker process starts no further command
NOT_STARTED = "not started"
Answer = tuple[int, str]  # exit code and output


@contextlib.contextmanager
def open_pool(num_workers: int, deadline: float, *, share_gpu: bool) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of worker processes for `run_commands`.

    Args:
        num_workers: Number of processes.
        deadline: Value of time.monotonic() at which the runs save and stop.
        share_gpu: Whether several of the processes use one GPU.
    """
    with mps_server(share_gpu) as environment:
        os.environ.update(environment)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, prepare_worker, (os.getpid(), deadline)) as pool:
            try:
                yield pool
            except KeyboardInterrupt:  # the workers receive it too, and save
                pool.shutdown(cancel_futures=True)
                raise


def run_commands(commands: Sequence[Sequence[str]], number: int) -> Answer:
    """Run commands one after the other in this worker process, up to the first that fails.

    Args:
        commands: Names of programs with their arguments.
        number: Position of the job, which chooses one of several GPUs.

    Returns:
        The exit code and the output of the last command.
    """
    if STOPPING.is_set():
        return PREEMPTED, NOT_STARTED
    os.environ["SAM_RUNNER_JOB"] = str(number)
    printed = io.StringIO()
    RUNNING.set()
    try:
        for command in commands:
            sys.argv = list(command)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = (train if command[0] == "sam-train" else evaluate).main()
            if code:
                if code == 130:  # Ctrl-C
                    STOPPING.set()
                return code, printed.getvalue()
    except RunInterrupt:
        return PREEMPTED, "stopped"
    finally:
        RUNNING.clear()
    return 0, printed.getvalue()


def get_answer(future: "Future[Answer]") -> Answer:
    """Return the answer of a call of `run_commands` that has ended; code 1 if its process was killed."""
    try:
        return future.result()
    except Exception as error:  # a worker was killed, or a command has a fault
        return 1, f"{type(error).__name__}: {error}"


def prepare_worker(parent: int, deadline: float) -> None:
    """Let this worker process save its run and start no other one at the deadline, or when the parent process ends.

    Args:
        parent: Process id of the parent.
        deadline: Value of time.monotonic().
    """

    def receive(*_: object) -> None:
        """Stop commands that have not begun to train; a run in training has its own handler, which saves."""
        if RUNNING.is_set():
            raise RunInterrupt(PREEMPTED, "SIGUSR1")

    def watch() -> None:
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(0.5)
        STOPPING.set()
        os.kill(os.getpid(), signal.SIGUSR1)
        while os.getppid() == parent or RUNNING.is_set():
            time.sleep(0.5)
        os._exit(PREEMPTED)  # without a parent the worker would wait for jobs for ever

    signal.signal(signal.SIGUSR1, receive)
    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def mps_server(wanted: bool) -> Iterator[dict[str, str]]:
    """Run an MPS server inside the body, and yield the environment in which processes use it; empty without a server.

    A server that the environment names already is used as it is.

    Args:
        wanted: Whether runs share a GPU; otherwise no server is started.
    """
    wanted = wanted and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    control = shutil.which("nvidia-cuda-mps-control") if wanted else None
    if control is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        started = subprocess.run([control, "-d"], env=os.environ | environment, capture_output=True, text=True)
        if started.returncode:
            print(f"MPS does not start, runs take turns: {started.stdout} {started.stderr}", flush=True)
            yield {}
            return
        try:
            answers = reaches_gpu(environment)
            if not answers:
                print("MPS does not answer, runs take turns", flush=True)
            yield environment if answers else {}
        finally:
            subprocess.run([control], input="quit\n", text=True, env=os.environ | environment, timeout=60)


def reaches_gpu(environment: dict[str, str]) -> bool:
    """Return whether a process with these environment variables computes on the GPU."""
    code = "import torch; print(torch.ones(3, device='cuda').sum().item())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return False
    return done.stdout.strip() == "3.0"
