"""Parts that several networks share: initial weights, stages of blocks, pooling, depthwise layers, random branches.

Layers that only one network uses are in that network's module.

May import: config.
"""
