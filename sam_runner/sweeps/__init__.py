"""The jobs of a sweep: their plan, the processes that train them, and how they ended.

`sweep` runs the jobs of one call of the command. `jobs` finds equal jobs and gives each a folder, `job_runner` trains
jobs one after the other, `pool` does so in several processes, `progress` tells how far they are. Everything that the
processes and the calls of a sweep share is in files in the sweep's folder: `claims` lets one process train a job,
`outcomes` records how each job ended, and `stop_flag` keeps further jobs from starting. `signals` passes the signal
that ends a sweep on to its jobs. Hydra's launchers and sweepers are configured in `config`, the table of a sweep is in
`reports`.

May import: utils, config, distributed, sam, data, models, training, paper, runs.
"""
