"""Measurements on finished runs: curvature, sharpness and slices of the loss, with their files, tables and plots.

`subject` restores a checkpoint with the fixed examples that it is measured on, `answers` stores results beside the run
so that a command that was stopped continues. `curvature`, `sharpness` and `landscape` each are one command's work,
`correlation` compares sharpness with generalisation, `plots` draws, and `surface_page` writes the interactive page. The
mathematics is in `geometry`, the commands' defaults in `options`. Nothing here trains a run or changes its other files.

May import: utils, config, distributed, sam, geometry, data, models, training, paper, runs, reports.
"""
