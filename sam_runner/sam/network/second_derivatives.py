"""Find operations that cannot be differentiated twice, and raise an error that names them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.function import once_differentiable

from sam_runner.utils.errors import TrainingError, find_memory_error, first_line

ONCE = once_differentiable(print).__code__  # of the backward method of every function that is marked
WRONG = {"WeightNormInterfaceBackward0": "weight_norm"}  # nodes whose backward pass torch differentiates wrongly


def require_second_derivatives(loss: Tensor, purpose: str, hint: str = "") -> None:
    """Require that torch has the second derivative of every function in the graph of a loss.

    The backward pass of a function that is marked ``once_differentiable`` raises only if the gradient that reaches it
    depends on a weight. Otherwise, for example in the last layer before a linear loss, torch would leave the function's
    second derivative out. torch's backward pass of weight norm takes ||v|| as a constant, so its derivative is wrong.

    Args:
        loss: A tensor with a graph, 0-dim.
        purpose: What needs second derivatives, for the message.
        hint: What to do instead, for the message.

    Raises:
        TrainingError: If it lacks one; the message names the function.
    """
    nodes, seen = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ in WRONG:
            raise _error(purpose, f"torch's second derivative of {WRONG[type(node).__name__]} is wrong", hint)
        function = getattr(type(node), "_forward_cls", None)  # of a torch.autograd.Function
        if function is not None and getattr(function.backward, "__code__", None) is ONCE:
            raise _error(purpose, f"{function.__name__} is marked once_differentiable", hint)
        nodes += [following for following, _ in node.next_functions]


@contextmanager
def explain_missing_derivative(purpose: str, hint: str = "") -> Iterator[None]:
    """Turn torch's error for an operation without a second derivative into a `TrainingError`; see above."""
    try:
        yield
    except RuntimeError as error:
        if find_memory_error(error):
            raise
        raise _error(purpose, first_line(error), hint) from error


def _error(purpose: str, reason: str, hint: str) -> TrainingError:
    message = f"{purpose} needs second derivatives, which an operation of the network lacks: {reason}"
    return TrainingError("\n  ".join(filter(None, [message, hint])))
