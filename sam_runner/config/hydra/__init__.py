"""All code that uses Hydra: composition, checks of Hydra's own settings, launchers and error messages.

Only this folder, `commands/train.py` and the jobs of a sweep import Hydra or OmegaConf.

May import: utils.
"""
