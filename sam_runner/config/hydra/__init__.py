"""All code that uses Hydra: composition, checks of Hydra's own settings, launchers and error messages.

In the package only this folder and `commands/train.py` import Hydra or OmegaConf.

May import: utils.
"""
