"""Write tests/assets/curves.json again, after a change that is meant to change the curves."""

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.oracles.curves import CURVES, losses  # noqa: E402 - needs the path of the line above

if __name__ == "__main__":
    torch.set_num_threads(1)
    frozen = {name: losses(name) for name in CURVES}
    (ROOT / "tests" / "assets" / "curves.json").write_text(json.dumps(frozen, indent=1) + "\n")
    for name, curve in frozen.items():
        print(f"{name:10} first {curve[0]} last {curve[-1]}")
