"""Runs on disk: the run folder and its files, the start and the end of a run, and its restoration.

`start` trains a run in its folder and continues it. `folder`, `lock`, `status`, `environment` and `model_facts` each
have one part of a run folder, `plan` has the jobs in a sweep's folder. `load` restores a run, or its network alone,
from its folder, `dry_run` describes a run without training it, and `logging/` has the loggers. The training is in
`training`, the jobs of a sweep in `sweeps`, tables of finished runs in `reports`.

May import: utils, config, distributed, sam, data, models, training, paper.
"""
