"""The settings of a run: names, types, defaults, ranges, meanings, rules and composition with Hydra.

`experiment.py` has the class of all settings (`ExperimentConfig`) and the only validation (`load_experiment`).
`data.py`, `model.py`, `optimizer.py` and `schedule.py` have the settings of the groups. No module here imports
torch, and only those in the folder `hydra` import Hydra or OmegaConf.

May import: utils.
"""
