"""Training of one run: the loop, the state of a run, evaluation, metrics, schedules and checkpoints.

`builders` makes a `Run` from the settings, `loop.fit` trains it, and `state` saves and restores it. `metrics_logger`
has the interface of the loggers. The mathematics of a step is in `sam`. Run folders, locks, log files and the start of
a run are in `runs`.

May import: utils, config, distributed, sam, geometry, data, models.
"""
