"""Joining and leaving the group of processes that torchrun has started."""

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import torch
from torch import distributed

from sam_runner.distributed.context import SINGLE_PROCESS, DistributedContext
from sam_runner.utils.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The context of this process, once it is connected. A process connects once, even if it makes several runs: the
# processes would not find each other a second time.
_CONTEXTS: list[DistributedContext] = []


def read_world_size(environment: Mapping[str, str]) -> int:
    """Return the number of processes that torchrun has started; 1 without torchrun.

    Raises:
        InputError: If variables of torchrun are missing or not numbers.
    """
    text = environment.get("WORLD_SIZE", "1")
    if text == "1":
        return 1
    missing = [name for name in VARIABLES if name not in environment]
    numeric = all(environment.get(name, "0").isdigit() for name in VARIABLES if name != "MASTER_ADDR")
    if missing or not numeric or int(text) < 1:
        fault = f"{', '.join(missing)} is not" if missing else "its variables are not all numbers"
        raise InputError(
            f"WORLD_SIZE={text} is set as by torchrun, but {fault}\n"
            "  start with torchrun --nproc-per-node N -m sam_runner ..., or unset WORLD_SIZE"
        )
    return int(text)


def connect_to_store() -> DistributedContext:
    """Connect to the key-value store that all processes of torchrun share, without joining a process group.

    Returns:
        The context of this process with its store, or `SINGLE_PROCESS` without torchrun.
    """
    if read_world_size(os.environ) == 1:
        return SINGLE_PROCESS
    if not _CONTEXTS:
        store, rank, count = next(iter(distributed.rendezvous("env://", timeout=timedelta(minutes=5))))  # type: ignore[attr-defined]
        # The store outlives the processes that --max-restarts replaces, so each attempt has keys of its own.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
        local_rank, local_world_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        _CONTEXTS.append(DistributedContext(rank, count, local_rank, local_world_size, store))
    return _CONTEXTS[0]


def broadcast_from_main(key: str, value: str) -> str:
    """Return the value of rank 0 on every rank, through the store.

    Args:
        key: Name of the entry in the store, used only once.
        value: The text to send; ignored on other ranks.
    """
    context = connect_to_store()
    if context.world_size == 1:
        return value
    if context.is_main:
        context.store.set(key, value)
    return str(context.store.get(key).decode())


def join_process_group(timeout: float, *, cuda: bool) -> DistributedContext:
    """Initialise the process groups of torchrun's processes, on the first call.

    Args:
        timeout: Seconds that a process waits for the others before it fails.
        cuda: Whether the tensors of the run are on CUDA devices.

    Returns:
        The context of this process, or `SINGLE_PROCESS` without torchrun.
    """
    context = connect_to_store()
    if context.world_size == 1 or context.cpu_group is not None:
        return context
    cpu_timeout = timedelta(seconds=timeout)
    # nccl terminates the process without a message at its timeout, so gloo, which raises, has to time out first.
    device_timeout = cpu_timeout + timedelta(seconds=60) if cuda else cpu_timeout
    if cuda:
        torch.cuda.set_device(context.local_rank)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=context.store,
        rank=context.rank,
        world_size=context.world_size,
        timeout=device_timeout,
    )
    cpu_group = distributed.new_group(backend="gloo", timeout=cpu_timeout)
    _CONTEXTS[0] = replace(context, timeout=timeout, cpu_group=cpu_group)
    return _CONTEXTS[0]


def leave_process_group() -> None:
    """Destroy the process group after rank 0 has ended its work; without torchrun this does nothing.

    The other ranks wait for rank 0, since torchrun terminates all processes as soon as one ends with an error.
    """
    for context in _CONTEXTS:
        with contextlib.suppress(Exception):  # rank 0, which holds the store, may have ended already
            if context.is_main:
                sys.stdout.flush()
                context.store.set("left", "")
            else:
                context.store.wait(["left"], timedelta(seconds=60))
        if context.cpu_group is not None:
            distributed.destroy_process_group()
