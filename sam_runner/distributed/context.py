"""The processes of a data-parallel run, as torchrun starts them: ranks, collectives, and errors that name their rank.

Tensors are reduced on their own device (nccl on CUDA). Python objects and numbers on the CPU use a second process group
(gloo), which does not synchronise with the device. A run without torchrun uses `SINGLE_PROCESS`, whose collectives
communicate with nobody.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from sam_runner.utils.errors import InputError, RankError, TrainingError, find_memory_error

T = TypeVar("T")
# Parts of the messages with which gloo and nccl report a lost connection.
LOST_CONNECTION = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out", "NCCL", "Broken pipe")
ERROR_WAIT = 5.0  # seconds to wait until other ranks have reported their error


@dataclass(frozen=True)
class DistributedContext:
    """One process's view of the processes that train a run together.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        local_rank: Number of this process on its machine, from 0; also the number of its GPU.
        local_world_size: Number of processes on this machine.
        store: Key-value store of torch that works even if other processes do not respond; None for one process.
        timeout: Seconds that a process waits for the others in a collective.
        cpu_group: Process group (gloo) for Python objects and CPU tensors; None before the process has joined it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    store: Any = None
    timeout: float = 0.0
    cpu_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that writes files, the log and the console."""
        return self.rank == 0

    def local_part(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a tensor, split along dimension 0 into parts whose sizes differ by at most one."""
        return batch if self.world_size == 1 else batch.tensor_split(self.world_size)[self.rank]

    def batch_weight(self, num_local: int, num_total: int) -> float:
        """Return the local batch size divided by the mean local batch size.

        The mean over ranks of weighted local means is then the mean over all examples.

        Args:
            num_local: Number of examples of the batch on this rank.
            num_total: Number of examples of the batch over all ranks.
        """
        return num_local * self.world_size / num_total

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor on any device by its sum over ranks, in place, and return it."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors of one device by their means over ranks, in place, in one message."""
        if self.world_size > 1 and tensors:
            flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors])
            mean = self.all_reduce_sum(flat) / self.world_size
            for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0, in place."""
        for tensor in tensors if self.world_size > 1 else ():
            if tensor.numel():
                message = tensor.reshape(-1).clone().view(torch.uint8)  # every backend has bytes
                distributed.broadcast(message, 0)
                tensor.copy_(message.view(tensor.dtype).view(tensor.shape))

    def all_reduce_and(self, flags: Tensor) -> Tensor:
        """Return where a bool tensor is true on every rank; does not synchronise with the device."""
        if self.world_size == 1:
            return flags
        minimum = flags.to(torch.float32)
        distributed.all_reduce(minimum, distributed.ReduceOp.MIN)
        return minimum > 0

    def all_reduce_max(self, *numbers: int) -> tuple[int, ...]:
        """Return the maximum of each number over ranks, e.g. of the number of a received signal."""
        if self.world_size == 1:
            return numbers
        maximum = torch.tensor(numbers)
        distributed.all_reduce(maximum, distributed.ReduceOp.MAX, group=self.cpu_group)
        return tuple(maximum.tolist())

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks in the order of ranks; a value consists of plain types and CPU tensors."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.cpu_group)
        return values

    def on_main(self, call: Callable[[], T]) -> T:
        """Call a function on rank 0 and return its result on every rank.

        If it raises, every rank raises.

        Raises:
            InputError: If rank 0 raises one.
            TrainingError: If rank 0 raises one.
            RankError: If rank 0 raises any other exception.
        """
        if self.world_size == 1:
            return call()
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [("result", call())]
            except (InputError, TrainingError) as error:
                distributed.broadcast_object_list([_describe_error(error)], group=self.cpu_group)
                raise
            except Exception as error:
                raise self.attribute_error(error) from error
        distributed.broadcast_object_list(outcome, group=self.cpu_group)
        kind, value = outcome[0]
        if kind != "result":
            raise _recreate_error(kind, 0, value)
        return value  # type: ignore[no-any-return]

    def on_all(self, call: Callable[[], T]) -> T:
        """Call a function on every rank and return the rank's own result.

        If it raises on one rank, every rank raises.

        Raises:
            InputError: If a rank raises one. The error of the lowest failing rank is raised. The message names the rank
                if only some ranks failed.
            TrainingError: Likewise.
            RankError: If a rank raises any other exception.
        """
        if self.world_size == 1:
            return call()
        result: list[T] = []
        failure: tuple[str, str] | None = None
        cause: Exception | None = None
        try:
            result.append(call())
        except (InputError, TrainingError) as error:
            failure, cause = _describe_error(error), error
        except Exception as error:
            raise self.attribute_error(error) from error
        failures = {rank: entry for rank, entry in enumerate(self.all_gather(failure)) if entry is not None}
        if not failures:
            return result[0]
        rank, (kind, text) = next(iter(failures.items()))
        raise _recreate_error(kind, rank if len(failures) < self.world_size else None, text) from cause

    @contextlib.contextmanager
    def averaged_buffers(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Average the floating-point buffers (batch-norm statistics) over ranks inside the body.

        After the body each rank has its own buffers again, bit for bit.
        """
        buffers = floating_point_buffers(modules) if self.world_size > 1 else []
        originals = [buffer.clone() for buffer in buffers]
        self.all_reduce_mean(buffers)
        try:
            yield
        finally:
            for buffer, original in zip(buffers, originals, strict=True):
                buffer.copy_(original)

    def attribute_error(self, error: Exception) -> Exception:
        """Return the exception to raise on this rank, whose message names the rank where the failure began.

        A rank that lost its connection reads the first error that another rank wrote to the store, or finds the ranks
        that do not respond. Any other exception is written to the store, if it is the first one.
        """
        if self.world_size == 1:
            return error
        text = f"rank {self.rank}: {_describe_error(error)[1]}"
        is_lost = _is_connection_error(error)
        with contextlib.suppress(Exception):  # the process that holds the store may have ended too
            if is_lost:
                return RankError(self._find_first_error())
            if self.store.add("errors", 1) == 1:
                self.store.set("first_error", text)
        if is_lost:
            text = f"rank {self.rank} has lost the other ranks: rank 0 was killed, or its machine does not respond"
        return RankError(text, is_local=True, is_explained=is_lost or find_memory_error(error) is not None)

    def _find_first_error(self) -> str:
        self.store.set(f"waiting/{self.rank}", "")
        end = time.monotonic() + ERROR_WAIT
        while time.monotonic() < end:
            if self.store.check(["first_error"]):
                return str(self.store.get("first_error").decode())
            silent = [rank for rank in range(self.world_size) if not self.store.check([f"waiting/{rank}"])]
            time.sleep(0.1)
        ranks = ", ".join(map(str, silent)) or "unknown"
        return f"rank {ranks} does not respond: it was killed, or blocked for rank_timeout={self.timeout:g} s"


SINGLE_PROCESS = DistributedContext()


def floating_point_buffers(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return the floating-point buffers of modules; in training they differ between ranks, as the local batches do."""
    return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]


def _describe_error(error: Exception) -> tuple[str, str]:
    """Return an exception's kind and message as strings, to send them to other ranks."""
    if isinstance(error, InputError | TrainingError):  # a subclass, too, is known on other ranks by this name
        return ("InputError" if isinstance(error, InputError) else "TrainingError"), str(error)
    return "RankError", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _recreate_error(kind: str, rank: int | None, text: str) -> Exception:
    """Return the exception that `_describe_error` described on another rank."""
    kinds: dict[str, type[Exception]] = {"InputError": InputError, "TrainingError": TrainingError}
    return kinds[kind](text if rank in (None, 0) else f"rank {rank}: {text}")


def _is_connection_error(error: Exception) -> bool:
    """Return whether an exception says that another process does not respond."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_CONNECTION)
