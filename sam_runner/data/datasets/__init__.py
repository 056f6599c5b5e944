"""Data sets: one module per source, each with a function that returns `sam_runner.data.splits.Splits`.

The arguments of the function are the keys of its file in conf/data. `download` and `restricted_pickle` are shared by
the sources. Label noise, held-out sets and augmentation are not in here.

May import: utils, distributed, config.
"""
