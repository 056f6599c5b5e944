"""Which parameters a step trains: those that the base optimizer holds and that require gradients."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sam_runner.distributed.sharding import is_sharded


def require_supported(model: nn.Module, params: list[nn.Parameter]) -> None:
    """Refuse parameters for which the step would not be Algorithm 1.

    Args:
        model: The network, for the parameters' names.
        params: The parameters.

    Raises:
        ValueError: If a parameter is complex or uninitialised, two overlap in memory, or they are on several devices.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    for param in params:
        name = names.get(id(param), "a parameter that is not in the model")
        if is_lazy(param):
            raise ValueError(f"{name} is not initialised: call the model once on an example before the step is built")
        if param.is_complex():
            raise ValueError(
                f"{name} is complex, which is not supported: store it as a real parameter (torch.view_as_real) and use "
                "torch.view_as_complex in the forward pass"
            )
    devices = {str(param.device) for param in params}
    if len(devices) > 1:
        raise ValueError(f"all parameters must be on one device, they are on {', '.join(sorted(devices))}")
    overlap = _find_overlap([param for param in params if not is_sharded(param)])
    if overlap:
        first, second = (names.get(id(param), "a parameter that is not in the model") for param in overlap)
        raise ValueError(f"{first} and {second} overlap in memory: use one nn.Parameter in both places")


def _find_overlap(params: list[nn.Parameter]) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Return two parameters whose memory overlaps, or None. Views of one storage may lie beside each other."""
    spans = []
    for param in params:
        if param.numel() and param.layout == torch.strided and param.device.type != "meta":
            last = sum((size - 1) * stride for size, stride in zip(param.shape, param.stride(), strict=True))
            start = param.data_ptr()
            spans.append((start, start + (last + 1) * param.element_size(), param))
    spans.sort(key=lambda span: span[:2])
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            return first, second
    return None


class TrainedParameters:
    """The parameters that an optimizer trains; they change by ``add_param_group`` and by ``requires_grad_``.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._ids: list[int] = []
        self._flags: list[bool] = []

    def read_changes(self) -> list[nn.Parameter] | None:
        """Return the parameters if they are other ones than at the last call, otherwise None.

        Raises:
            ValueError: If the optimizer trains no parameter.
        """
        held = [param for group in self._optimizer.param_groups for param in group["params"]]
        ids, flags = list(map(id, held)), [param.requires_grad for param in held]
        if ids == self._ids and flags == self._flags:
            return None
        trained = [param for param in held if param.requires_grad]
        if not trained:
            raise ValueError("the optimizer holds no parameter that requires a gradient")
        self._ids, self._flags = ids, flags
        return trained
