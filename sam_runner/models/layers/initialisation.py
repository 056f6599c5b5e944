"""Initial weights of this program's networks."""

from typing import get_args

from torch import nn

from sam_runner.config.model import Init


def initialise(model: nn.Module, head: nn.Linear, init: Init) -> None:
    """Draw the weights of a network from torch's global generator, in place.

    Args:
        model: The whole network.
        head: Its last layer.
        init: The distribution of the weights:

            - ``fan_in``: normal with variance 2/inputs for convolutions and linear layers (He, Zhang, Ren and Sun,
              ICCV 2015);
            - ``fan_out``: normal with variance 2/outputs for convolutions, where the kernel's size multiplies the
              outputs, as in the authors' code of wide residual networks, PyramidNets and Shake-Shake;
            - ``sam``: like ``fan_out``, and the head uniform on +-1/sqrt(classes) with bias 0, as in the SAM paper's
              code;
            - ``torch``: torch's defaults for each layer.

    Raises:
        ValueError: If `init` is none of these.
    """
    if init not in get_args(Init):
        raise ValueError(f"init={init} is not known\n  accepted: {', '.join(get_args(Init))}")
    for module in model.modules():
        if init == "fan_in" and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif init in ("fan_out", "sam") and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if init == "sam":
        bound = head.out_features**-0.5
        nn.init.uniform_(head.weight, -bound, bound)
        nn.init.zeros_(head.bias)
