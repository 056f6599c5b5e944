"""All code that uses Hydra: composition, checks of Hydra's own settings, launchers and error messages.

Beside this folder only `commands/train.py` imports Hydra or OmegaConf.

May import: utils.
"""
