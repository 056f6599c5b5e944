"""Which parameters a step trains: those that the base optimizer holds and that require gradients."""

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
        ValueError: If a parameter is complex or uninitialised, has elements that share memory, two overlap in memory,
            or they are on several devices.
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
        if _overlaps_itself(param):
            raise ValueError(
                f"elements of {name} share memory: make the parameter with clone(), and expand it in forward"
            )
    devices = {str(param.device) for param in params}
    if len(devices) > 1:
        raise ValueError(f"all parameters must be on one device, they are on {', '.join(sorted(devices))}")
    overlap = _find_overlap([param for param in params if not is_sharded(param)])
    if overlap:
        first, second = (names.get(id(param), "a parameter that is not in the model") for param in overlap)
        raise ValueError(f"{first} and {second} overlap in memory: use one nn.Parameter in both places")


def _overlaps_itself(param: nn.Parameter) -> bool:
    """Return whether elements of a parameter share memory, as those of an expanded tensor do."""
    if is_sharded(param) or param.layout != torch.strided or param.is_contiguous():
        return False
    pairs = sorted((stride, size) for size, stride in zip(param.shape, param.stride(), strict=True) if size > 1)
    reach = 0
    for stride, size in pairs:
        if stride <= reach:
            return param.numel() > 0
        reach += (size - 1) * stride
    return False


def _find_overlap(params: list[nn.Parameter]) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Return two parameters that have memory in common, or None. Views of one storage may lie beside each other."""
    spans = []
    for param in params:
        if param.numel() and param.layout == torch.strided and param.device.type != "meta":
            last = sum((size - 1) * stride for size, stride in zip(param.shape, param.stride(), strict=True))
            start = param.data_ptr()
            spans.append((start, start + (last + 1) * param.element_size(), param))
    spans.sort(key=lambda span: span[:2])
    cluster: list[tuple[int, int, nn.Parameter]] = []  # spans of one range of memory
    for span in spans:
        if cluster and span[0] >= max(end for _, end, _ in cluster):
            cluster.clear()
        for other in cluster:
            if _have_common_bytes(other, span):
                return other[2], span[2]
        cluster.append(span)
    return None


def _have_common_bytes(first: tuple[int, int, nn.Parameter], second: tuple[int, int, nn.Parameter]) -> bool:
    """Return whether two parameters, given with the ends of their memory, share a byte; one may lie in gaps of another.

    Columns of one matrix have overlapping ranges of memory and no common byte, for example.
    """
    start = min(first[0], second[0])
    is_used = torch.zeros(max(first[1], second[1]) - start, dtype=torch.bool)
    for begin, _, param in (first, second):
        size = param.element_size()
        strides = [stride * size for stride in param.stride()]
        bytes_of_param = is_used.as_strided((*param.shape, size), (*strides, 1), begin - start)
        if bytes_of_param.any():
            return True
        bytes_of_param.fill_(True)
    return False


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
