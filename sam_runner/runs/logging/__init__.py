"""The loggers of a run: JSON lines and TensorBoard.

May import: utils, training.
"""
