"""The number format of a network."""

import torch
from torch import Tensor, nn


def convert_numbers(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the parameters and buffers of a network in place; whole numbers stay as they are.

    Complex numbers get the complex format of the same precision. `nn.Module.to` would discard their imaginary part.

    Args:
        model: The network.
        dtype: float32, or another floating-point format.
    """

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    converted: nn.Module = model._apply(convert)
    return converted
