"""Stages of residual blocks, the body of networks for small images."""

from collections.abc import Callable, Sequence

from torch import nn

BlockFactory = Callable[[int, int, int], nn.Module]  # (input channels, output channels, stride) -> block


def build_stages(inputs: int, widths: Sequence[int], num_blocks: int, build_block: BlockFactory) -> nn.Sequential:
    """Return stages of `num_blocks` blocks each; the first block of every stage but the first has stride 2.

    `inputs` is the number of the stem's output channels, `widths` the number of output channels of each stage.
    """
    blocks: list[nn.Module] = []
    for stage, outputs in enumerate(widths):
        for index in range(num_blocks):
            blocks.append(build_block(inputs, outputs, 2 if index == 0 and stage > 0 else 1))
            inputs = outputs
    return nn.Sequential(*blocks)
