"""Write tests/assets/curves.json again, after a change that is meant to change the curves."""

import json
from pathlib import Path

import torch

from tests.oracles.curves import CURVES, losses

CURVES_FILE = Path(__file__).resolve().parents[2] / "tests" / "assets" / "curves.json"

if __name__ == "__main__":
    torch.set_num_threads(1)
    frozen = {name: losses(name) for name in CURVES}
    CURVES_FILE.write_text(json.dumps(frozen, indent=1) + "\n")
    for name, curve in frozen.items():
        print(f"{name:10} first {curve[0]} last {curve[-1]}")
