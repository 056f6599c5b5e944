"""The commands sam-train, sam-eval, sam-verify and sam-report: one file each, with `main` returning the exit code.

A command parses its arguments, calls the package that does the work, and prints. It imports torch only after its
arguments are valid.

May import: utils, config, distributed, training, runs, sweeps, reports, analysis, paper.
"""
