"""The commands sam-train, sam-eval, sam-report and others: one file each, with `main` returning the exit code.

A command parses its arguments, calls the package that does the work, and prints. It imports torch only after its
arguments are valid. The commands that use trained models are in the folder `inference`.

May import: utils, config, distributed, training, runs, sweeps, reports, analysis, paper, inference.
"""
