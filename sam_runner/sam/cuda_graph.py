"""The whole step as one CUDA graph: both passes and the base optimizer's step, launched together.

A network of small layers keeps a GPU waiting for Python, which launches thousands of kernels of a few microseconds one
by one. A graph is recorded once and then replayed without Python. Values that change from step to step are tensors with
fixed addresses: the batch, rho and the learning rates.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sam_runner.sam.batch import Batch, batch_signature, map_tensors
from sam_runner.sam.method import Method
from sam_runner.sam.perturbation import is_zero
from sam_runner.sam.step import SamStep, StepStats
from sam_runner.utils.errors import first_line
from sam_runner.utils.seeding import RngState

log = logging.getLogger(__name__)
T = TypeVar("T")
Key = tuple[tuple[Any, ...], str, bool]  # signature of the batch, name of the method, whether rho is not 0
NUM_WARM_UP_STEPS = 3  # eager steps before a recording: cuDNN chooses its algorithms, the optimizer creates its state
OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # if fused, read the rate from a tensor


class Recorder(Protocol):
    """Records a function and replays it."""

    def run(self, call: Callable[[], T]) -> T:
        """Run `call` under the conditions of a recording and return its result."""

    def record(self, call: Callable[[], T]) -> Callable[[], T]:
        """Record `call` without running it.

        Returns:
            A function that replays the recording. It returns the tensors that `call` returned, with new values.
        """


class CudaRecorder:
    """Records CUDA graphs.

    Args:
        device: CUDA device of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._device = device

    def run(self, call: Callable[[], T]) -> T:
        """Run `call` on the stream of later recordings, because autograd remembers streams."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def record(self, call: Callable[[], T]) -> Callable[[], T]:
        """Record `call`; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = call()

        def replay() -> T:
            graph.replay()
            return result

        return replay


class EagerRecorder:
    """Calls the function again instead of a recording, for tests on any device."""

    def run(self, call: Callable[[], T]) -> T:
        """Run `call`."""
        return call()

    def record(self, call: Callable[[], T]) -> Callable[[], T]:
        """Return `call`."""
        return call


@dataclass(frozen=True)
class _Recording:
    """A recorded step and the tensors that it reads."""

    batch: Batch
    rho: Tensor
    rates: list[Tensor]
    replay: Callable[[], StepStats]


class CapturedStep:
    """A `SamStep` that is recorded once per shape of batch and kind of step, and then replayed.

    The first `NUM_WARM_UP_STEPS` steps of a kind run eagerly and train as usual. If the step cannot be recorded, a
    warning says why and all steps run eagerly. The next step overwrites the tensors of a `StepStats`.

    Args:
        step: The step to record.
        recorder: Default: a `CudaRecorder` for the step's device.
    """

    def __init__(self, step: SamStep, recorder: Recorder | None = None) -> None:
        self.objective, self.optimizer, self.method = step.objective, step.optimizer, step.method
        self._step = step
        self._num_seen: dict[Key, int] = {}
        self._recordings: dict[Key, _Recording] = {}
        self._blocker = capture_blocker(step)
        if recorder is None and step.objective.device.type != "cuda":
            self._blocker = f"it needs a CUDA device, this is {step.objective.device}"
        self._recorder = None if self._blocker else recorder or CudaRecorder(step.objective.device)

    def __call__(self, batch: Batch, rho: float, number: int | None = None) -> StepStats:
        """Take one step, see `SamStep`; `rho` is a number."""
        if self._blocker:
            self._disable(self._blocker)
        if self._step.update_parameters():  # the recordings use the old parameters
            self._num_seen.clear()
            self._recordings.clear()
        method, radius = self._step.choose_method(rho, number)
        recorder = self._recorder
        if recorder is None:
            return self._step.take(batch, method, radius, number)
        key = batch_signature(batch), method.name, not is_zero(radius)
        if key not in self._recordings:
            self._num_seen[key] = self._num_seen.get(key, 0) + 1
            if self._num_seen[key] <= NUM_WARM_UP_STEPS:
                return self._warm_up(recorder, lambda: self._step.take(batch, method, radius, number))
            try:
                self._recordings[key] = self._record(recorder, batch, method, radius)
            except RuntimeError as error:
                self._disable(first_line(error))
                return self._step.take(batch, method, radius, number)
        return self._replay(self._recordings[key], batch, radius)

    def _disable(self, reason: str) -> None:
        log.warning("the step cannot be recorded as a CUDA graph: %s; the steps run without a graph", reason)
        self._recorder, self._blocker = None, ""

    def _warm_up(self, recorder: Recorder, call: Callable[[], StepStats]) -> StepStats:
        device, generators = self.objective.device, self.objective.generators
        before, buffers = RngState.capture(device, generators), self.objective.statistics.identities()
        stats = recorder.run(call)
        if not before.equals(RngState.capture(device, generators)):
            # for the same masks in both passes the host has to read the generator's state
            self._disable("the network draws random numbers (dropout)")
        elif buffers != self.objective.statistics.identities():
            self._disable("the network replaces a buffer by another tensor")
        return stats

    def _record(self, recorder: Recorder, batch: Batch, method: Method, radius: float | Tensor) -> _Recording:
        device = self.objective.device
        static = Batch(*map_tensors(_copy, (batch.inputs, batch.targets)))
        rho = torch.tensor(float(radius), device=device)
        rates = [torch.tensor(float(group["lr"]), device=device) for group in self.optimizer.param_groups]

        def call() -> StepStats:
            with self._rates_from_tensors(rates):
                return self._step.take(static, method, 0.0 if is_zero(radius) else rho)

        self.optimizer.zero_grad(set_to_none=True)  # gradients of a recording are in the graph's memory
        return _Recording(static, rho, rates, recorder.record(call))

    @contextmanager
    def _rates_from_tensors(self, rates: list[Tensor]) -> Iterator[None]:
        """Let the optimizer read its learning rates from tensors."""
        groups = self.optimizer.param_groups
        before = [(group["lr"], group.get("capturable")) for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = capturable

    def _replay(self, recording: _Recording, batch: Batch, radius: float | Tensor) -> StepStats:
        static = recording.batch
        targets = tree_leaves((static.inputs, static.targets))
        for target, source in zip(targets, tree_leaves((batch.inputs, batch.targets)), strict=True):
            if isinstance(target, Tensor):
                target.copy_(source)
        recording.rho.fill_(radius)
        for rate, group in zip(recording.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        return recording.replay()


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor).copy_(tensor)


def capture_blocker(step: SamStep) -> str:
    """Return why a step cannot be recorded; empty if it can."""
    if step.objective.context.world_size > 1:
        return "several processes train together"
    if step.objective.scaler.is_enabled():
        return "the loss scaler of fp16 decides on the host whether a step is skipped (use bf16)"
    if step.method.capture_blocker:
        return step.method.capture_blocker
    is_fused = all(group.get("fused") for group in step.optimizer.param_groups)
    if type(step.optimizer) not in OPTIMIZERS or not is_fused:
        name = type(step.optimizer).__name__
        return f"{name} reads its learning rate on the host (use SGD, Adam or AdamW with fused=True)"
    return ""
