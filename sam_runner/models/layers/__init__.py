"""Parts that several networks share: initial weights, pooling, stages of blocks, Shake-Shake and ShakeDrop.

`float32_depthwise` changes how depthwise convolutions of any network compute.

Layers that only one network uses are in that network's module.

May import: config.
"""
