"""Build a run from its settings.

`run.build_run` turns an `ExperimentConfig` into a `Run`. `data` builds the image sets, `optimizer` the base optimizer,
`method` the method of the step, and `run` all other parts.
"""
