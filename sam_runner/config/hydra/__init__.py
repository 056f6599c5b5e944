"""All code that uses Hydra: composition, checks of Hydra's own settings, launchers and error messages.

Only this folder, `commands/train.py` and the sweeps import Hydra or OmegaConf.

May import: utils.
"""
