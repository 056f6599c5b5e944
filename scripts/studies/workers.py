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
from multiprocessing.connection import Connection
from types import FrameType

from sam_runner.commands import evaluate, train
from sam_runner.utils.errors import INTERRUPTED, PREEMPTED, RunInterrupt
from sam_runner.utils.signals import raise_for_signal

RUNNING = threading.Event()  # this worker process executes commands
STOPPING = threading.Event()  # this worker process starts no further command
NOT_STARTED = "not started"
Answer = tuple[int, str]  # exit code and output


@contextlib.contextmanager
def open_pool(num_workers: int, deadline: float, *, share_gpu: bool) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of worker processes for `run_commands`. The main thread calls this.

    Args:
        num_workers: Number of processes.
        deadline: Value of time.monotonic() at which the runs save and stop.
        share_gpu: Whether several of the processes use one GPU.

    Raises:
        SystemExit: After the body, with code 75, if this process received SIGTERM. The runs have saved and stopped.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)  # the workers stop when `writer` is closed, or this process ends
    with mps_server(share_gpu) as environment, close_at_sigterm(writer):
        os.environ.update(environment)
        with ProcessPoolExecutor(num_workers, context, prepare_worker, (reader, deadline)) as pool:
            try:
                yield pool
            except KeyboardInterrupt:  # the workers receive it too, and save
                pool.shutdown(cancel_futures=True)
                raise
    if writer.closed:
        sys.exit(PREEMPTED)


@contextlib.contextmanager
def close_at_sigterm(writer: Connection) -> Iterator[None]:
    """Close a connection at SIGTERM instead of ending this process, inside the body."""
    previous = signal.signal(signal.SIGTERM, lambda *_: writer.close())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_commands(commands: Sequence[Sequence[str]], number: int) -> Answer:
    """Run commands one after the other in this worker process, up to the first that fails.

    Args:
        commands: Names of programs with their arguments.
        number: Position of the job, which chooses one of several GPUs.

    Returns:
        The exit code and the output of the last command.
    """
    os.environ["SAM_RUNNER_JOB"] = str(number)
    printed = io.StringIO()
    RUNNING.set()
    try:
        if STOPPING.is_set():  # read after `RUNNING` is set: a signal finds one of the two
            return PREEMPTED, NOT_STARTED
        for command in commands:
            sys.argv = list(command)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = (train if command[0] == "sam-train" else evaluate).main()
            if code:
                if code in (PREEMPTED, INTERRUPTED):  # a signal
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


def prepare_worker(stop: Connection, deadline: float) -> None:
    """Let this worker process save its run and start no other one at a signal, at the deadline or at the end of `stop`.

    Args:
        stop: Connection that is at its end when the worker has to stop, or the parent process has ended.
        deadline: Value of time.monotonic().
    """

    def receive(number: int, _: FrameType | None) -> None:
        """Stop commands that have not begun to train; a run in training has its own handler, which saves."""
        STOPPING.set()
        if RUNNING.is_set():
            raise_for_signal(number)

    def watch() -> None:
        while time.monotonic() < deadline and not stop.poll(0.5):
            pass
        STOPPING.set()
        os.kill(os.getpid(), signal.SIGUSR1)
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        while RUNNING.is_set():
            time.sleep(0.5)
        os._exit(PREEMPTED)  # without a parent the worker would wait for jobs for ever

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, receive)
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
