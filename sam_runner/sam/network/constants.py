"""Parameters that a step does not train must not be state of the network.

A forward pass may write a parameter, as the moving average of another network, say. Buffers are protected from the
passes at w + eps (`sam_runner.sam.batch_statistics`); copies of all frozen weights would cost too much memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sam_runner.distributed.sharding import is_sharded
from sam_runner.utils.errors import TrainingError


@contextmanager
def constants_stay(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Require that the pass in the context replaces no parameter and writes none that is not trained.

    Args:
        model: The network.
        trained: Parameters that the step trains.

    Raises:
        TrainingError: With the name of the parameter.
    """
    ids = {id(param) for param in trained}
    before = dict(model.named_parameters())
    values = {
        name: param.detach().clone() for name, param in before.items() if id(param) not in ids and not is_sharded(param)
    }
    yield
    after = dict(model.named_parameters())
    replaced = [name for name, param in before.items() if after.get(name) is not param]
    if trained_ones := [name for name in replaced if id(before[name]) in ids]:
        raise TrainingError(
            f"the forward pass replaces the parameter {trained_ones[0]}, so the optimizer does not train the new one\n"
            "  use the new values in the forward pass without storing them"
        )
    changed = replaced + [
        name
        for name, value in values.items()
        if name not in replaced and not torch.equal(value.nan_to_num(), before[name].detach().nan_to_num())
    ]
    if changed:
        raise TrainingError(
            f"the forward pass changes the parameter {changed[0]}, which the optimizer does not train: the second pass "
            "of a step would change it again\n  store it as a buffer (register_buffer)"
        )
