"""How a process joins the others that torchrun has started, and parts from them."""

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


def read_world_size(environment: Mapping[str, str]) -> int:
    """How many processes torchrun has started; 1 without it.

    Raises:
        InputError: Where its variables are incomplete or no numbers.
    """
    text = environment.get("WORLD_SIZE", "1")
    if text == "1":
        return 1
    missing = [name for name in VARIABLES if name not in environment]
    numbers = all(environment.get(name, "0").isdigit() for name in VARIABLES if name != "MASTER_ADDR")
    if missing or not numbers or int(text) < 1:
        raise InputError(
            f"WORLD_SIZE={text} is set, but not what torchrun sets beside it ({', '.join(missing) or 'as numbers'})\n"
            "  start with torchrun --nproc-per-node N -m sam_runner ..., or unset WORLD_SIZE"
        )
    return int(text)


_JOINED: list[
    DistributedContext
] = []  # a process joins once, however many runs it makes: a second group would not come together


def connect_to_store() -> DistributedContext:
    """The processes that torchrun has started, which have a store in common but are no group yet; or `SINGLE_PROCESS`."""
    if read_world_size(os.environ) == 1:
        return SINGLE_PROCESS
    if not _JOINED:
        store, rank, count = next(iter(distributed.rendezvous("env://", timeout=timedelta(minutes=5))))  # type: ignore[attr-defined]
        attempt = os.environ.get(
            "TORCHELASTIC_RESTART_COUNT", "0"
        )  # the store outlives those that --max-restarts replaces
        store = distributed.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
        local_rank, local_world_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        _JOINED.append(DistributedContext(rank, count, local_rank, local_world_size, store))
    return _JOINED[0]


def broadcast_from_main(key: str, value: str) -> str:
    """What rank 0 gives for `key`, on every rank."""
    context = connect_to_store()
    if context.world_size == 1:
        return value
    if context.is_main:
        context.store.set(key, value)
    return str(context.store.get(key).decode())


def join_process_group(timeout: float, *, cuda: bool) -> DistributedContext:
    """Become a group with the other processes of torchrun; `SINGLE_PROCESS` without it.

    Args:
        timeout: Seconds that they wait for each other before they give up.
        cuda: Whether the data will be on CUDA devices.
    """
    context = connect_to_store()
    if context.world_size == 1 or context.hosts is not None:
        return context
    hosts_wait = timedelta(seconds=timeout)
    # Devices wait longer, so that a rank that hangs is told by its host: nccl would end this process without a word.
    wait = hosts_wait + timedelta(seconds=60) if cuda else hosts_wait
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if cuda:
        torch.cuda.set_device(context.local_rank)
    distributed.init_process_group(
        backend, store=context.store, rank=context.rank, world_size=context.world_size, timeout=wait
    )
    _JOINED[0] = replace(context, timeout=timeout, hosts=distributed.new_group(backend="gloo", timeout=hosts_wait))
    return _JOINED[0]


def leave_process_group() -> None:
    """Part from the others in good order, the first rank before them: torchrun ends all once one ends with an error."""
    for context in _JOINED:
        with contextlib.suppress(Exception):  # the first may be gone
            if context.is_main:
                sys.stdout.flush()
                context.store.set("left", "")
            else:
                context.store.wait(["left"], timedelta(seconds=60))
        if context.hosts is not None:
            distributed.destroy_process_group()
