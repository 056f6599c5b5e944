"""Evaluate a model at other weights and return to the exact bits of the old ones."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sam_runner.distributed.sharding import is_sharded, to_local


@contextmanager
def swapped_parameters(params: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Let the parameters hold `values` inside the context; restore the bits of w on exit, also after an exception.

    w is never modified: each parameter points to other memory inside the context. Subtracting eps again would not give
    the bits of w, because w + eps - eps is rounded. Sharded parameters cannot point elsewhere, so they are overwritten
    and restored from a copy.

    Args:
        params: Parameters at w.
        values: Tensors of the same shapes in other storage; for sharded parameters, the shapes of the local shards.
    """
    if is_sharded(params[0]):
        with _overwrite_shards([to_local(param.detach()) for param in params], values):
            del values
            yield
        return
    originals = [param.data for param in params]
    try:
        for param, value in zip(params, values, strict=True):
            param.data = value
        del values
        yield
    finally:
        for param, original in zip(params, originals, strict=True):
            param.data = original


@contextmanager
def _overwrite_shards(shards: list[Tensor], values: list[Tensor]) -> Iterator[None]:
    originals = [shard.clone() for shard in shards]
    try:
        for shard, value in zip(shards, values, strict=True):
            shard.copy_(value)
        del values
        yield
    finally:
        for shard, original in zip(shards, originals, strict=True):
            shard.copy_(original)
