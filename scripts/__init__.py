"""Programs around the package. Run them from the repository's root, with the package installed by `pip install -e .`.

The installation makes the repository importable, so scripts and tests import each other as `scripts.FOLDER.NAME`.
"""
