"""What rests on Hydra: composing the configuration, guarding Hydra's own settings, launchers, and messages for errors.

Only this package, `commands/train.py` and the jobs of a sweep import Hydra or OmegaConf.

May import: utils.
"""
