"""Forward and backward passes of several networks of one architecture as one pass of their stacked weights.

Runs that differ only in their seed launch the same small kernels one after the other. Here each run is a thread. The
threads meet where their networks are called (`sam_runner.utils.turns`), and `torch.func.vmap` over the stacked weights,
buffers and inputs makes one pass for all of them. They meet again in the backward pass. Each run still has
its own loss, perturbation, optimizer and everything else.

The results of a joint pass differ from those of separate passes by rounding only: vmap turns matrix products into
batched ones and convolutions into grouped ones.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from sam_runner.utils.errors import first_line
from sam_runner.utils.seeding import RngState
from sam_runner.utils.turns import Turns

TOLERANCE = 1e-3  # of outputs, gradients and buffers, relative to the largest: a wrong pass is wrong in its first digit
Tensors = dict[str, Tensor]


@dataclass(eq=False)
class _Stack:
    """The graph of a joint forward pass.

    Attributes:
        outputs: Outputs of all networks, (networks, N, C).
        params: Stacked parameters that require gradients.
    """

    outputs: Tensor
    params: list[Tensor]


class _Request(Protocol):
    def key(self) -> object:
        """Return a value that is equal for requests which one pass answers."""


@dataclass(frozen=True)
class _Forward:
    """Request of a forward pass: the network, its input, and whether a backward pass follows."""

    model: nn.Module
    inputs: Tensor
    has_backward: bool

    def key(self) -> object:
        modes = tuple(module.training for module in self.model.modules())
        return self.inputs.shape, self.inputs.dtype, self.has_backward, modes


@dataclass(frozen=True)
class _Backward:
    """Request of a backward pass: the graph, the network's position in it, and the gradient of its outputs."""

    stack: _Stack
    position: int
    grad_outputs: Tensor

    def key(self) -> object:
        return id(self.stack)


class JointPasses:
    """Makes joint passes for runs in threads.

    Args:
        read: Maps what a network returns to one tensor whose first axis is the example; logits (N, C).
    """

    def __init__(self, read: Callable[[Any], Tensor]) -> None:
        self._read = read
        self._turns = Turns(self._answer)

    def run(self, calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
        """Call each function in a thread; see `Turns.run`. Networks are called through `forward` there."""

        def in_this_thread(call: Callable[[], object]) -> None:
            # Otherwise the backward passes of all threads would run, and wait for each other, in one thread of the GPU.
            with torch.autograd.set_multithreading_enabled(False):
                call()

        with warnings.catch_warnings():  # vmap tells which operations it makes one network after the other
            warnings.filterwarnings("ignore", "There is a performance drop")
            return self._turns.run([partial(in_this_thread, call) for call in calls])

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a function that calls `model` in a joint pass, for `sam_runner.sam.objective.Objective`.

        Its argument is a tensor whose first axis is the example. Second derivatives are refused by autograd.
        """

        def call(inputs: Tensor) -> Tensor:
            outputs: Tensor = _JointPass.apply(self, model, inputs, torch.is_grad_enabled(), *_trainable_params(model))
            return outputs

        return call

    def meet(self, request: _Request, device: torch.device) -> Any:
        """Return the answer to a request; the random state of the run is the same afterwards."""
        state = RngState.capture(device)
        answer = self._turns.meet(request)
        state.restore(device)
        return answer

    def _answer(self, requests: list[_Request]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        groups: dict[object, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault((type(request), request.key()), []).append(number)
        for numbers in groups.values():
            group: list[Any] = [requests[number] for number in numbers]
            found = _backward(group) if isinstance(group[0], _Backward) else _forward(group, self._read)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        return answers


class _JointPass(torch.autograd.Function):
    """The part of a joint pass that belongs to one network."""

    @staticmethod
    def forward(  # the graph needs the parameters as arguments
        ctx: Any,
        joint: JointPasses,
        model: nn.Module,
        inputs: Tensor,
        has_backward: bool,
        *params: Tensor,  # noqa: ARG004
    ) -> Tensor:
        ctx.joint = joint
        ctx.stack, ctx.position = joint.meet(_Forward(model, inputs, has_backward), inputs.device)
        outputs: Tensor = ctx.stack.outputs[ctx.position].detach()
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        request = _Backward(ctx.stack, ctx.position, grad_outputs)
        return None, None, None, None, *ctx.joint.meet(request, grad_outputs.device)


def _trainable_params(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def _forward(requests: Sequence[_Forward], read: Callable[[Any], Tensor]) -> list[tuple[_Stack, int]]:
    """Make one forward pass; return the graph and the position of each network in it."""
    models = [request.model for request in requests]
    params = _stack([dict(model.named_parameters()) for model in models])
    buffers = _stack([dict(model.named_buffers()) for model in models])
    trained = []
    for name, param in models[0].named_parameters():
        if param.requires_grad:
            trained.append(params[name].requires_grad_(requests[0].has_backward))

    def call(params: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        return read(functional_call(models[0], (params, buffers), (inputs,)))

    with torch.set_grad_enabled(requests[0].has_backward):
        outputs: Tensor = torch.vmap(call)(params, buffers, torch.stack([request.inputs for request in requests]))
    _write_buffers(models, buffers)
    stack = _Stack(outputs, trained)
    return [(stack, position) for position in range(len(models))]


def _backward(requests: Sequence[_Backward]) -> list[tuple[Tensor | None, ...]]:
    """Make one backward pass; return the gradient of each network's trained parameters, None for an unused one."""
    stack = requests[0].stack
    grad_outputs = torch.zeros_like(stack.outputs)  # a network whose run has ended has no request
    for request in requests:
        grad_outputs[request.position] = request.grad_outputs
    grads = torch.autograd.grad(stack.outputs, stack.params, grad_outputs, allow_unused=True)
    return [tuple(None if grad is None else grad[request.position] for grad in grads) for request in requests]


@torch.no_grad()
def _stack(tensors: Sequence[Tensors]) -> Tensors:
    return {name: torch.stack([entry[name] for entry in tensors]) for name in tensors[0]}


@torch.no_grad()
def _write_buffers(models: Sequence[nn.Module], stacked: Tensors) -> None:
    """Write the buffers after a joint pass into those of each network."""
    targets = [buffer for model in models for buffer in model.buffers()]
    if targets:
        rows = [tensor[number] for number in range(len(models)) for tensor in stacked.values()]
        torch._foreach_copy_(targets, rows)


def explain_impossible_passes(model: nn.Module, inputs: Tensor, read: Callable[[Any], Tensor]) -> str:
    """Return why joint passes of networks like `model` are not possible, "" if they are.

    Two copies of the network make a pass each and one together; outputs, gradients and buffers must agree.

    Args:
        model: The network in training mode; it is not changed.
        inputs: A few examples, (N, ...), on its device.
        read: See `JointPasses`.
    """
    networks = [deepcopy(model) for _ in range(4)]
    with torch.no_grad():
        for network in networks[1::2]:
            for param in _trainable_params(network):
                param.mul_(0.9)
    state, parts = RngState.capture(inputs.device), [inputs, inputs.flip(0) / 2]
    alone = [_differentiate(network, read, part) for network, part in zip(networks[:2], parts, strict=True)]
    if not state.equals(RngState.capture(inputs.device)):
        return "it draws random numbers in a pass (dropout, stochastic depth)"
    joint, together = JointPasses(read), [torch.empty(0)] * 2

    def differentiate(number: int) -> None:
        forward = joint.forward(networks[2 + number])
        together[number] = _differentiate(networks[2 + number], lambda outputs: outputs, parts[number], forward)

    errors = joint.run([lambda: differentiate(0), lambda: differentiate(1)])
    if error := next(filter(None, errors), None):
        return first_line(error)
    same = all(
        bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
        for one, other in zip(alone, together, strict=True)
    )
    return "" if same else "the gradient of a joint pass differs from that of a pass of its own"


def _differentiate(
    model: nn.Module,
    read: Callable[[Any], Tensor],
    inputs: Tensor,
    forward: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """Make a pass; return its outputs, a gradient and the buffers of the network, all in one vector."""
    outputs = read((forward or model)(inputs))
    grads = torch.autograd.grad(outputs.square().sum(), _trainable_params(model), materialize_grads=True)
    found = [outputs, *grads, *model.buffers()]
    return torch.cat([tensor.detach().flatten().to(outputs.dtype) for tensor in found])
