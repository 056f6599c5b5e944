"""The settings of a run: their names, types, defaults, ranges, meanings and rules, and how Hydra composes them.

`experiment.py` has the whole (`ExperimentConfig`) and the only validation (`load_experiment`); one file a group has the
settings of its options. The packages that build something take their own group from here. Nothing here imports torch,
and only the folder `hydra` imports Hydra or OmegaConf.

May import: utils.
"""
