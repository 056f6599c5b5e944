"""Gradients with memory of their own, as dense tensors.

Autograd may give two parameters gradients that are views of one storage: ``row.flatten() + col.flatten()`` does. A
gradient can also be a view of a tensor that someone else needs, such as an input. SAM writes w + eps over the gradient,
gradients of micro-batches are added in place, and clipping multiplies in place.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from sam_runner.distributed.sharding import is_sharded

_count_references = getattr(torch._C, "_storage_Use_Count", None)
_NUM_OWN_REFERENCES = 2  # the gradient and the Python object of its storage


def own_gradients(params: Iterable[Tensor]) -> None:
    """Copy each ``.grad`` whose memory is referenced elsewhere, and make sparse ones dense.

    References to the storage are counted, which takes less than a microsecond per parameter and reads no data.
    """
    for param in params:
        grad = param.grad
        if grad is None or is_sharded(grad):
            continue
        if grad.layout != torch.strided:
            param.grad = grad.to_dense()
        elif _is_shared(grad):
            param.grad = grad.clone()


def _is_shared(tensor: Tensor) -> bool:
    if _count_references is None:  # a torch version without the counter: be safe
        return True
    return bool(_count_references(tensor.untyped_storage()._cdata) > _NUM_OWN_REFERENCES)
