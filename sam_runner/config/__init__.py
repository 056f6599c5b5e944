"""The settings of a run: names, types, defaults, ranges, meanings, rules and composition with Hydra.

`experiment.py` has the class of all settings (`ExperimentConfig`) and the only validation (`load_experiment`).
`data.py`, `model.py`, `schedule.py` and the folder `optimizer` have the settings of the groups, and the folder `rules`
has the rules between settings. No module here imports torch, and only those in the folder `hydra` import Hydra or
OmegaConf.

May import: utils.
"""
