"""Count operations, so that a test can tell how work grows without a clock."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_counts: Counter[str] | None = None


def _count(event: str, arguments: tuple) -> None:
    if _counts is not None:
        _counts[event] += 1


sys.addaudithook(_count)  # it cannot be removed


@contextmanager
def count_events() -> Iterator[Counter[str]]:
    """Count the audit events of the body by name, such as ``open``; ``os.listdir`` and ``os.scandir`` list folders."""
    global _counts
    _counts = Counter()
    try:
        yield _counts
    finally:
        _counts = None


class CountElements(TorchDispatchMode):
    """Counts the elements of the tensors that the operations in its context create, without views.

    Attributes:
        total: Their sum.
        largest: Elements of the largest of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count its result."""
        result = func(*args, **(kwargs or {}))
        known = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in known:
            self.total += result.numel()
            self.largest = max(self.largest, result.numel())
        return result
