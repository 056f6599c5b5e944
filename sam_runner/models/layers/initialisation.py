"""How the weights of our networks begin."""

from typing import Literal

from torch import nn

Init = Literal["fan_in", "fan_out", "sam", "torch"]


def initialise(model: nn.Module, head: nn.Linear, init: Init) -> None:
    """Draw the weights anew.

    Args:
        model: All of the network.
        head: Its last layer.
        init: ``fan_in``: normal of variance 2/inputs for convolutions and linear layers (He, Zhang, Ren and Sun, ICCV
            2015). ``fan_out``: of variance 2/outputs for convolutions, outputs counted with the kernel, as the
            authors' code of wide residual networks, PyramidNets and Shake-Shake. ``sam``: the same, and the head
            uniform on +-1/sqrt(classes), its bias 0, as the SAM paper's code. ``torch``: as torch makes its layers.

    Raises:
        ValueError: For any other `init`.
    """
    if init not in ("fan_in", "fan_out", "sam", "torch"):
        raise ValueError(f"init={init} is not known: fan_in, fan_out, sam, torch")
    for module in model.modules():
        if init == "fan_in" and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif init in ("fan_out", "sam") and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if init == "sam":
        bound = head.out_features**-0.5
        nn.init.uniform_(head.weight, -bound, bound)
        nn.init.zeros_(head.bias)
