"""Processes that train one run together, as torchrun starts them: who they are, and what they tell each other.

Data stay on the device (nccl on CUDA); what only the hosts have to know goes from host to host (gloo) and waits for no
device. One process alone is `SINGLE_PROCESS`, for which everything here gives back what it was given.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from sam_runner.utils.errors import InputError, RankError, TrainingError

T = TypeVar("T")
BROKEN = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out", "NCCL", "Broken pipe")
SETTLING = 5.0  # seconds in which the others can say what happened to them


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: This process, from 0.
        world_size: How many there are.
        local_rank: This process among those of its machine, which is the number of its GPU.
        local_world_size: How many are on this machine.
        store: Where they leave notes, which does not depend on any of them answering; None for one process.
        timeout: Seconds that they wait for each other.
        hosts: Their group for what is not on a device.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    store: Any = None
    timeout: float = 0.0
    hosts: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes: files, the log, the console."""
        return self.rank == 0

    def local_part(self, whole: Tensor) -> Tensor:
        """This rank's part of what they do together, consecutive; sizes differ by at most one."""
        return whole if self.world_size == 1 else whole.tensor_split(self.world_size)[self.rank]

    def batch_weight(self, num_own: int, num_all: int) -> float:
        """What a mean over `num_own` examples counts in a mean over ranks that is to be one over `num_all` examples."""
        return num_own * self.world_size / num_all

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place; of any device."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Mean over the ranks, in place, as one message; floating point, of one device."""
        if self.world_size > 1 and tensors:
            flat = (
                self.all_reduce_sum(torch.cat([tensor.detach().flatten().double() for tensor in tensors]))
                / self.world_size
            )
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def all_reduce_and(self, flags: Tensor) -> Tensor:
        """Where a flag is set on every rank; bool, waits for no device."""
        if self.world_size == 1:
            return flags
        whole = flags.to(torch.float32)
        distributed.all_reduce(whole, distributed.ReduceOp.MIN)
        return whole > 0

    def all_reduce_max(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number over the ranks: a signal that one of them has received, say."""
        if self.world_size == 1:
            return numbers
        whole = torch.tensor(numbers)
        distributed.all_reduce(whole, distributed.ReduceOp.MAX, group=self.hosts)
        return tuple(whole.tolist())

    def all_gather(self, value: T) -> list[T]:
        """The value of every rank, plain types and CPU tensors, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.hosts)
        return values

    def on_main(self, call: Callable[[], T]) -> T:
        """What rank 0 gets from `call`, for all; where it raises, all raise.

        Raises:
            InputError: As rank 0 does; so with TrainingError.
            RankError: Where rank 0 raises anything else.
        """
        if self.world_size == 1:
            return call()
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [("good", call())]
            except (InputError, TrainingError) as error:
                distributed.broadcast_object_list([_told(error)], group=self.hosts)
                raise
            except Exception as error:
                raise self.attribute_error(error) from error
        distributed.broadcast_object_list(outcome, group=self.hosts)
        kind, value = outcome[0]
        if kind != "good":
            raise _error(kind, 0, value)
        return value  # type: ignore[no-any-return]

    def on_all(self, call: Callable[[], T]) -> T:
        """What each rank gets from `call`; where one raises, all raise.

        Raises:
            InputError: That of the first rank that raises one, with its number if others went well; so with
                TrainingError.
            RankError: Where a rank raises anything else.
        """
        if self.world_size == 1:
            return call()
        result: list[T] = []
        mine: tuple[str, str] | None = None
        cause: Exception | None = None
        try:
            result.append(call())
        except (InputError, TrainingError) as error:
            mine, cause = _told(error), error
        except Exception as error:
            raise self.attribute_error(error) from error
        everyone = self.all_gather(mine)
        failed = {rank: told for rank, told in enumerate(everyone) if told is not None}
        if not failed:
            return result[0]
        rank, (kind, text) = next(iter(failed.items()))
        raise _error(kind, rank if len(failed) < self.world_size else None, text) from cause

    @contextlib.contextmanager
    def averaged_buffers(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Inside the body floating-point buffers (batch-norm statistics) are the means over the ranks.

        Afterwards they are each rank's own again, to the bit.
        """
        buffers = floating_point_buffers(modules) if self.world_size > 1 else []
        before = [buffer.clone() for buffer in buffers]
        self.all_reduce_mean(buffers)
        try:
            yield
        finally:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)

    def attribute_error(self, error: Exception) -> Exception:
        """The error with the rank that it began on; to be raised by every rank that fails on its own.

        A rank whose connection broke looks for what the others left in the store: the first error, or which of them
        does not answer any more.
        """
        if self.world_size == 1:
            return error
        text = f"rank {self.rank}: {_told(error)[1]}"
        with contextlib.suppress(Exception):  # whoever keeps the store may be gone too
            if _is_broken(error):
                return RankError(self._first_error())
            if self.store.add("errors", 1) == 1:
                self.store.set("first_error", text)
        return RankError(text, own=True)

    def _first_error(self) -> str:
        self.store.set(f"waiting/{self.rank}", "")
        end = time.monotonic() + SETTLING
        while time.monotonic() < end:
            if self.store.check(["first_error"]):
                return str(self.store.get("first_error").decode())
            silent = [rank for rank in range(self.world_size) if not self.store.check([f"waiting/{rank}"])]
            time.sleep(0.1)
        named = ", ".join(map(str, silent)) or "unknown"
        return f"rank {named} does not answer: it was killed, or hung for rank_timeout={self.timeout:g} s"


SINGLE_PROCESS = DistributedContext()


def floating_point_buffers(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The floating-point buffers, which each rank moves by its own images."""
    return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]


def _told(error: Exception) -> tuple[str, str]:
    """An error as others are told of it: its kind, and its message."""
    if isinstance(error, InputError | TrainingError):
        return type(error).__name__, str(error)
    return "RankError", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _error(kind: str, rank: int | None, text: str) -> Exception:
    kinds: dict[str, type[Exception]] = {"InputError": InputError, "TrainingError": TrainingError}
    return kinds[kind](text if rank in (None, 0) else f"rank {rank}: {text}")


def _is_broken(error: Exception) -> bool:
    """Whether an error says that another process does not answer."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)
