"""The jobs of a sweep, in this process or in processes of a launcher.

`job` runs one job. Everything that the processes of a sweep share is in files in the sweep's folder: `outcomes` records
how each job ended, and `stop_flag` keeps further jobs from starting. `signals` passes the signal that ends a sweep on
to its jobs. Hydra's launchers and sweepers are configured in `config`, the table of a sweep is in `reports`.

May import: utils, config, distributed, sam, data, models, training, paper, runs.
"""
