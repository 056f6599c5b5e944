"""The body that networks for small images have in common: three stages of blocks."""

from collections.abc import Callable, Sequence

from torch import nn

Block = Callable[[int, int, int], nn.Module]  # from channels in, channels out and stride


def build_stages(inputs: int, widths: Sequence[int], num_blocks: int, block: Block) -> nn.Sequential:
    """`num_blocks` blocks for each of `widths`; each stage but the first begins with stride 2.

    Args:
        inputs: Channels of the stem.
        widths: Channels of each stage.
        num_blocks: In a stage.
        block: Makes one.
    """
    blocks: list[nn.Module] = []
    for stage, outputs in enumerate(widths):
        for index in range(num_blocks):
            blocks.append(block(inputs, outputs, 2 if index == 0 and stage > 0 else 1))
            inputs = outputs
    return nn.Sequential(*blocks)
