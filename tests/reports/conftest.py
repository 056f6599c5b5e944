"""A sweep over rho and seeds for the tests of reports."""

import numpy as np
import pytest

from tests.run_folders import lay


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """Folder of twelve finished runs and a failed one, and the accuracies by (optimizer, rho)."""
    folder = tmp_path_factory.mktemp("sweeps") / "rho"
    generator = np.random.default_rng(0)
    accuracies = {}
    for optimizer, radii in (("sgd", [0.05]), ("sam", [0.02, 0.05, 0.1])):
        for rho in radii:
            for seed in range(3):
                value = float(generator.uniform(0.8, 0.9)) + (0.05 if rho == 0.1 else 0)
                accuracies.setdefault((optimizer, rho if optimizer == "sam" else None), []).append(value)
                lay(folder / f"{optimizer}-{rho}-{seed}", optimizer=optimizer, rho=rho, seed=seed, accuracy=value)
    lay(folder / "failed", rho=0.2, status="failed", error="ValueError: boom\nsecond line")
    return folder, accuracies
