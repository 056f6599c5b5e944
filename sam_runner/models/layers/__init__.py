"""Parts that several networks share: initial weights, stages of blocks, Shake-Shake and ShakeDrop.

Layers that only one network uses are in that network's module.

May import: config.
"""
