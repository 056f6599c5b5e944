"""The whole step as one CUDA graph: both passes and the base optimizer's step, launched at once.

A network of small layers keeps a GPU waiting for Python: thousands of kernels of a few microseconds each are launched
one by one. Recorded once, they are replayed without it. What a recording reads anew in every step lies in tensors: the
batch, rho and the learning rates.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sam_runner.sam.objective import Batch
from sam_runner.sam.step import SamStep, StepStats
from sam_runner.utils.seeding import RngState

log = logging.getLogger(__name__)
T = TypeVar("T")
Key = tuple[torch.Size, torch.dtype, bool]  # of the images; whether there is a second pass
WARM_UP = 3  # steps before a recording: cuDNN chooses its algorithms, the optimizer makes its state
OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # whose fused step reads its rate from a tensor


class Recorder(Protocol):
    """What records and replays."""

    def run(self, call: Callable[[], T]) -> T:
        """Call now, as a recording will have it."""

    def record(self, call: Callable[[], T]) -> Callable[[], T]:
        """Record without doing it; what is returned does it, and gives the tensors that `call` gave, filled anew."""


class CudaRecorder:
    """Records CUDA graphs.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._device = device

    def run(self, call: Callable[[], T]) -> T:
        """On the stream that is recorded later, since autograd remembers streams."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], T]) -> Callable[[], T]:
        """Other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = call()

        def replay() -> T:
            graph.replay()
            return result

        return replay


class EagerRecorder:
    """Records nothing and calls again: the same path on any device, for tests."""

    def run(self, call: Callable[[], T]) -> T:
        """Call."""
        return call()

    def record(self, call: Callable[[], T]) -> Callable[[], T]:
        """The call itself."""
        return call


@dataclass(frozen=True)
class _Recording:
    """A recorded step and the tensors that it reads."""

    batch: Batch
    rho: Tensor
    rates: list[Tensor]
    replay: Callable[[], StepStats]


class CapturedStep:
    """A `SamStep` that is recorded once for each shape of batch, and replayed.

    The first `WARM_UP` steps of a shape are made one operation at a time; they train as every other. Where a step
    cannot be recorded, a warning says why and all steps are made like that. The tensors of a `StepStats` are
    overwritten by the next step.

    Args:
        step: What is recorded.
        recorder: Default a `CudaRecorder` for the step's device.
    """

    def __init__(self, step: SamStep, recorder: Recorder | None = None) -> None:
        self.objective, self.optimizer = step.objective, step.optimizer
        self._step = step
        self._seen: dict[Key, int] = {}
        self._recordings: dict[Key, _Recording] = {}
        self._obstacle = capture_blocker(step)
        if recorder is None and step.objective.device.type != "cuda":
            self._obstacle = f"it needs a CUDA device, this is {step.objective.device}"
        self._recorder = None if self._obstacle else recorder or CudaRecorder(step.objective.device)

    def __call__(self, batch: Batch, rho: float, number: int | None = None) -> StepStats:
        """Take one step, see `SamStep`."""
        if self._obstacle:
            self._give_up(self._obstacle)
        if self._recorder is None:
            return self._step(batch, rho, number)
        key = batch.images.shape, batch.images.dtype, rho > 0
        if key not in self._recordings:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM_UP:
                return self._warm_up(self._recorder, batch, rho)
            try:
                self._recordings[key] = self._record(self._recorder, batch, rho)
            except RuntimeError as error:
                self._give_up(str(error).splitlines()[0])
                return self._step(batch, rho)
        return self._replay(self._recordings[key], batch, rho)

    def _give_up(self, reason: str) -> None:
        log.warning("compile=graph: the step cannot be recorded: %s; it runs one operation at a time", reason)
        self._recorder, self._obstacle = None, ""

    def _warm_up(self, recorder: Recorder, batch: Batch, rho: float) -> StepStats:
        device = self.objective.device
        before = RngState.capture(device)
        stats = recorder.run(lambda: self._step(batch, rho))
        after = RngState.capture(device)
        drawn = not torch.equal(before.cpu, after.cpu)
        if before.cuda is not None and after.cuda is not None:
            drawn = drawn or not torch.equal(before.cuda, after.cuda)
        if drawn:  # both passes have to see the same masks, which takes the generator's state to the host
            self._give_up("the network draws random numbers (dropout)")
        return stats

    def _record(self, recorder: Recorder, batch: Batch, rho: float) -> _Recording:
        device = self.objective.device
        images, labels = torch.empty_like(batch.images).copy_(batch.images), batch.labels.clone()
        static = Batch(images, labels)
        radius = torch.tensor(rho, device=device)
        rates = [torch.tensor(float(group["lr"]), device=device) for group in self.optimizer.param_groups]

        def call() -> StepStats:
            with self._from_tensors(rates):
                return self._step(static, radius if rho > 0 else 0.0)

        self.optimizer.zero_grad(set_to_none=True)  # gradients of the recording have their memory in it
        return _Recording(static, radius, rates, recorder.record(call))

    @contextmanager
    def _from_tensors(self, rates: list[Tensor]) -> Iterator[None]:
        """The optimizer reads its learning rates from tensors."""
        groups = self.optimizer.param_groups
        before = [(group["lr"], group.get("capturable")) for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, (lr, capturable) in zip(groups, before, strict=True):
                group["lr"] = lr
                if "capturable" in group:
                    group["capturable"] = capturable

    def _replay(self, recording: _Recording, batch: Batch, rho: float) -> StepStats:
        recording.batch.images.copy_(batch.images)
        recording.batch.labels.copy_(batch.labels)
        recording.rho.fill_(rho)
        for rate, group in zip(recording.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        return recording.replay()


def capture_blocker(step: SamStep) -> str:
    """Why a step cannot be recorded; empty where it can."""
    if step.objective.ranks.world_size > 1:
        return "several processes train together"
    if step.objective.scaler.is_enabled():
        return "the loss scaler of fp16 decides on the host whether a step is skipped (use bf16)"
    if step.second_order:
        return "the second-order term is differentiated twice"
    if step.direction_seed is not None:
        return "a random direction is drawn anew in each step"
    fused = all(group.get("fused") for group in step.optimizer.param_groups)
    if type(step.optimizer) not in OPTIMIZERS or not fused:
        return f"{type(step.optimizer).__name__} reads its learning rate on the host (use SGD, Adam or AdamW)"
    return ""
