"""Processes that train the jobs of a sweep at once on this machine; each takes the next free job until all have ended.

A process that dies, for lack of memory for example, ends its own job only, and another one takes its place. The death
is recorded here if the run had not begun. The processes print through this one, so that their lines do not disturb the
line that shows the progress. They end when this process ends, also if it is killed.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from sam_runner.sweeps.job_runner import Call, leave_ctrl_c_to_parent, train_jobs
from sam_runner.sweeps.jobs import Job
from sam_runner.sweeps.outcomes import read_outcomes, record_deaths
from sam_runner.sweeps.signals import stop_between_jobs
from sam_runner.sweeps.stop_flag import read_stop_flag
from sam_runner.utils.console import log_to_console, print_line
from sam_runner.utils.errors import INTERRUPTED, PREEMPTED, RunInterrupt
from sam_runner.utils.hardware import count_usable_cores
from sam_runner.utils.signals import EXIT_CODES, block_stop_signals

log = logging.getLogger("sam_runner")
GRACE_PERIOD = 1.0  # seconds that the processes have to end after a second Ctrl-C


def train_at_once(jobs: Sequence[Job], call: Call, num_workers: int, share: int) -> None:
    """Train jobs in several processes.

    Args:
        jobs: The jobs.
        call: The call of the command.
        num_workers: Number of processes.
        share: Number of processes that share the cores of this machine. It may be larger than `num_workers`, so that
            the last jobs of a sweep have as many threads as the first.
    """
    workers: dict[int, BaseProcess] = {}
    deaths = 0
    try:
        for slot in range(num_workers):
            workers[slot] = _start(slot, jobs, call, share)
        while workers:
            wait([worker.sentinel for worker in workers.values()])
            for slot, worker in list(workers.items()):
                if worker.is_alive():
                    continue
                worker.join()
                del workers[slot]
                code = worker.exitcode or 0
                record_deaths(call.folder, jobs)
                if read_stop_flag(call.folder):
                    continue
                if code < 0:
                    log.warning("a process of the sweep was ended by %s", signal.Signals(-code).name)
                have_ended = all(read_outcomes(call.folder, jobs, call.since))
                deaths += not have_ended
                if not have_ended and deaths <= len(jobs):  # one that cannot even start would be replaced for ever
                    workers[slot] = _start(slot, jobs, call, share)
    finally:
        for worker in workers.values():
            worker.join(GRACE_PERIOD)
            worker.kill()
            worker.join()


def _start(slot: int, jobs: Sequence[Job], call: Call, share: int) -> BaseProcess:
    """Start a process and threads that print its output.

    Args:
        slot: Number of the process, from 0; it chooses one of several GPUs.
        jobs: The jobs.
        call: The call of the command.
        share: Number of processes that share the cores of this machine.
    """
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    arguments = (slot, jobs, call, share, dict(os.environ), *(writer for _, writer in ends))
    worker = context.Process(target=_work, args=arguments)
    with block_stop_signals():  # in the new process, until it is ready for them
        worker.start()
    for (reader, writer), stream in zip(ends, ("stdout", "stderr"), strict=True):
        writer.close()
        threading.Thread(target=_print_lines, args=(reader, stream), daemon=True).start()
    return worker


def _print_lines(reader: Connection, stream: str) -> None:
    """Print what a process writes, line by line, until it ends."""
    with os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="backslashreplace") as lines:
        reader.close()
        for line in lines:
            print_line(line.rstrip("\n"), stream)


def _work(
    slot: int,
    jobs: Sequence[Job],
    call: Call,
    share: int,
    environment: dict[str, str],
    output: Connection,
    errors: Connection,
) -> None:
    """Train jobs until none is left; the main function of a process."""
    from tqdm import tqdm

    for number, connection, name in ((1, output, "stdout"), (2, errors, "stderr")):
        os.dup2(connection.fileno(), number)
        connection.close()
        setattr(sys, name, open(number, "w", buffering=1, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
    os.environ.update(environment)
    os.environ["SAM_RUNNER_JOB"] = str(slot)
    os.environ["SAM_RUNNER_JOBS_AT_ONCE"] = str(share)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_usable_cores() // share)))
    log_to_console()
    tqdm.set_lock(threading.RLock())  # its default is a semaphore, of which Python warns where the process is killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with stop_between_jobs():
            leave_ctrl_c_to_parent()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)
            train_jobs(jobs, call)
    except RunInterrupt as stopped:
        _exit(stopped.code)
    except KeyboardInterrupt:
        _exit(INTERRUPTED)
    except BrokenPipeError:
        _exit(PREEMPTED)


def _exit(code: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(code)


def _end_with_parent() -> None:
    """Send SIGTERM to this process when its parent has ended: a run saves and ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
